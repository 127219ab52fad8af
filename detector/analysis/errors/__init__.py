"""Errors of a detector: their kinds, the AP50 that each kind costs, and the confusion matrix."""
