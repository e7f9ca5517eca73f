"""A planned sweep on Ray."""
