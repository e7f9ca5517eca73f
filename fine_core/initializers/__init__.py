"""Initializations of base models of any size, one file or folder each."""
