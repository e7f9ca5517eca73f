"""Ways to start a base model of any size, one file or folder each."""
