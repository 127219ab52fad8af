"""Run a detector on a data set, and score its detections."""
