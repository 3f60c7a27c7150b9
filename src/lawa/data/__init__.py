"""Token sequences in an exact, seekable order: sources → tokenizer → token store → batches. NumPy only.

sources.py      what a source is: text and JSONL files, a `datasets` dataset, Megatron's token files
files.py        files on disk, recognised without being read again
corpus.py       the documents of files, and which of them are held out; dataset.py: those of a dataset
megatron.py     token files that are read where they are
tokenizer.py    the byte-level BPE that is trained here, or a given tokenizer
encoding.py     documents to ids, on several threads
request.py      what a store is asked to hold, compared with what one holds
building.py     writing a store; store.py: opening one, building it first if need be
permutation.py  permutations that are entered anywhere
order.py        which sequences update t reads, of one source or of several by weight
"""
