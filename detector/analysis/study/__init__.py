"""Comparison of the arms of a sweep: runs -> numbers -> statistics -> report and page."""
