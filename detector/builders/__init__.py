"""Configuration -> model, data, optimizer: the only package that knows both sides.

Everything built here takes plain keyword arguments and has never heard of the configuration.
"""
