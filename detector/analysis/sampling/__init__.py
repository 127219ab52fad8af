"""Sampling places and effective receptive fields of a network, for single points of an image."""
