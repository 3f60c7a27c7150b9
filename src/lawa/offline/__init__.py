"""Averaging checkpoints on disk or hub: read each byte once, with the bits of the loop."""
