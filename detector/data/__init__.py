"""Data sets with one sample format, the training transform, and the data loaders."""
