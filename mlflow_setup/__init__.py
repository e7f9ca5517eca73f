"""Remember a sweep: MLflow store, runs, figures and tables. Knows records, not torch. Only here is MLflow known."""
