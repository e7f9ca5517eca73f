"""Which points to compute, and running them: command lines, plans, Ray Tune, fronts. Only here are Tune and click known."""
