"""Detections of a data set and their metrics."""
