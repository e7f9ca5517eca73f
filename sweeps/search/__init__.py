"""Optuna studies of transfer settings."""
