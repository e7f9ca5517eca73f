"""Frozen specs of what can be computed."""
