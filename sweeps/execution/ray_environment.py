"""Ray's settings, which it reads when it is imported, or from the environment of the processes that it starts."""

from __future__ import annotations

import os

WAITING_TRIALS = 16  # make a cluster grow that can; with a searcher Tune lets one wait

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # train.report returns at the controller's next poll
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "604800",  # groups wait for nodes, and for each other
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep here, where the runs' statuses are set
    "TUNE_MAX_PENDING_TRIALS_PG": str(WAITING_TRIALS),
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def set_defaults() -> None:
    """Set what the user has not set."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # the same variables may come with the job
    else:
        # Without a cluster Ray's processes stay on the loopback address, as they do on macOS by default.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
