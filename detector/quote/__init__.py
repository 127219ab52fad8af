"""Copies measured figures from JSON files into markdown pages."""
