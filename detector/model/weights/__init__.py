"""Weights from files of any framework: what they are, and into which network they go."""
