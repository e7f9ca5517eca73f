"""One point of a sweep: its spec, the training loop, evaluation and record. Only `worker` knows Ray Train."""
