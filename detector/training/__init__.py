"""The training loop, its checkpoints, its records, and training with several processes."""
