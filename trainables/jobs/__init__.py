"""What computes a job, one file a kind."""
