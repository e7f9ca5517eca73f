"""Readers of images on disk, one file a format."""
