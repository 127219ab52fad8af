"""Recognises weights in files of several frameworks and loads them into the detector."""
