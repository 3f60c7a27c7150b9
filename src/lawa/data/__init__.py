"""Token sequences in an exact, seekable order: text → tokenizer → token store → batches. NumPy only.

corpus.py     documents on disk, and which of them are held out
tokenizer.py  the byte-level BPE that is trained here, or a given tokenizer
store.py      the documents as token ids, on disk, built once
order.py      which sequences update t reads
"""
