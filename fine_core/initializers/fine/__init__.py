"""FINE: factors shared by all layers, and sigma of each (arXiv 2409.19289)."""
