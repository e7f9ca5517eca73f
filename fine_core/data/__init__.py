"""Datasets (built-in, generated or by path) and their readers."""
