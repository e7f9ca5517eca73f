"""Scores of generated images: features, reference statistics, metrics and the protocol."""
