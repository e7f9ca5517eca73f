"""Feature extractors, one file per kind."""
