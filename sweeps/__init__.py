"""Which points: plans, Ray Tune and Optuna. Importing it sets Ray's defaults, before any of its modules imports Ray."""

from sweeps.execution.ray_environment import set_defaults

set_defaults()
