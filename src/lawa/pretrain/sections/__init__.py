"""The sections of a configuration: one file a section, checked when it is made. No torch."""
