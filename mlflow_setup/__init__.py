"""Recording of sweeps: MLflow store, runs, figures and tables. Reads records, never torch. Only this package imports MLflow."""
