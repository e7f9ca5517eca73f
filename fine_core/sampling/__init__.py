"""Sampling of images from a model."""
