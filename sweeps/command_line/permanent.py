"""Relative paths in a Ray job, whose working folder is another one each time and is deleted after it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fine_core.data.readers.registry import READERS

PLACES, DATA = ("storage_path", "tracking_uri", "study_storage", "out"), ("dataset", "target", "data")  # options


def check_permanent(options: Mapping[str, Any]) -> None:
    """Raises ValueError for a relative path, in a Ray job, of what is written, or of data that are known by their path."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    given = {_flag(name): (options.get(name) or "", _place) for name in PLACES}
    given |= {_flag(name): (options.get(name) or "", _data) for name in DATA}
    if not options.get("tracking_uri"):
        given["MLFLOW_TRACKING_URI"] = (os.environ.get("MLFLOW_TRACKING_URI", ""), _place)
    for name, (text, path_of) in given.items():
        path = path_of(str(text))
        if path and "://" not in path and not Path(path).expanduser().is_absolute():
            raise ValueError(f"{name} {text} would lie in the job's temporary folder; name an absolute path")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _place(text: str) -> str:
    """A path, or the path of an SQLite database."""
    scheme, separator, path = text.partition(":///")
    return path if separator and scheme.startswith("sqlite") else text


def _data(text: str) -> str:
    """The path of a set of images that is known by its path."""
    kind, _, path = text.partition(":")
    return path if kind in READERS else ""
