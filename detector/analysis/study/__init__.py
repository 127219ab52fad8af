"""Several runs, read as an experiment: runs -> numbers -> statistics -> report and page."""
