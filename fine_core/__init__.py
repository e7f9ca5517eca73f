"""The science of fine-sweeps in pure PyTorch: models, losses, samplers, scores. Knows neither Ray, Optuna nor MLflow."""
