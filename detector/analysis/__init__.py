"""Analyses of finished runs, their checkpoints and their detections."""
