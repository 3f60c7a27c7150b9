"""From records to a page, a picture and a table. Reads run directories and nothing else: no torch."""
