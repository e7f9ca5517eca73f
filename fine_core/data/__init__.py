"""Datasets: embedded, generated or by path, and their readers."""
