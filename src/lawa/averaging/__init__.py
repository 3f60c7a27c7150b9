"""The arithmetic of averaging: tensors by name. No files, no trainers.

Read it in this order: averages (what is asked for), coefficients, mean (the bits), parameters and
stores (where tensors lie), window, running and collection (what is held), replacement, averager (the
whole method), state (going on in a fresh process).
"""
