"""The storage path: finished jobs, their files and their provenance."""
