"""Build the model, the data sets and the optimizer that a configuration describes.

This is the only package that imports both the configuration and what is built from it: the classes
built here take plain keyword arguments and know nothing of the configuration.
"""
