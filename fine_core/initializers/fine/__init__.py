"""FINE: factors shared by all layers, and a sigma per layer (arXiv 2409.19289)."""
