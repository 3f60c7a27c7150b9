"""Pre-training with the whole method: configuration, setup, the loop, its checkpoints."""
