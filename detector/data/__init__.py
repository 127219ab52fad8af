"""Data sets of one contract, their transforms and their batches."""
