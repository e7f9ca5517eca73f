"""The training loop and what it needs: batches, order, prefetch, checkpoints, context."""
