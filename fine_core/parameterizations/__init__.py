"""Parameterizations: what a network predicts and how images are corrupted, one file each."""
