"""From a grid to a plan of jobs, with their predicted costs. Computes nothing."""
