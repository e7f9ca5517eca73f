"""Readers of images on disk, one file per format."""
