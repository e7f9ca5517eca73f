"""Which points to compute, and running them: command lines, plans, Ray Tune, fronts. The only package that knows Tune and click."""
