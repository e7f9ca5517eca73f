"""What a sweep found: fronts, ledger, curves, the best model under a budget."""
