"""How ecosystems name and split the tensors of the same model. No torch."""
