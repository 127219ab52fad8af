"""Compares a training step with torchvision's."""
