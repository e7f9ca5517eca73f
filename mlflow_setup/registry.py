"""Registration of a model in MLflow: files and tags, no flavour, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_setup.tracking import Tracking

ARTIFACT_FOLDER = "model"
TAG_LIMIT = 4000
NAME_LIMIT = 256
REFUSED = "/:%'\""  # separators of MLflow's own addresses, and what its searches cannot hold


def check_model_name(name: str) -> None:
    """Raises ValueError for a name that MLflow's registry does not take."""
    found = [sign for sign in REFUSED if sign in name]
    if found or not name.strip() or len(name) > NAME_LIMIT:
        what = (
            f"has {' '.join(found)}" if found else "is empty" if not name.strip() else f"is longer than {NAME_LIMIT} characters"
        )
        raise ValueError(f"the model name {name!r} {what}; MLflow's registry takes letters, digits, dots, dashes and spaces")


def register_model(tracking: Tracking, name: str, folder: Path, card: dict[str, Any], *, scores: Mapping[str, float]) -> str:
    """Store a folder as an artifact of a new run with these scores, and register it as the next version of `name`.

    Returns the version.
    """
    from mlflow.exceptions import RestException

    client = tracking.client
    run = client.create_run(tracking.experiment_id, run_name=name, tags={"dataset": card["dataset"]})
    for metric, value in scores.items():
        client.log_metric(run.info.run_id, metric, value)
    client.log_artifacts(run.info.run_id, str(folder), ARTIFACT_FOLDER)
    client.set_terminated(run.info.run_id, "FINISHED")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Dense diffusion transformers picked by fine-sweeps")
    tags = {key: json.dumps(value)[:TAG_LIMIT] for key, value in card.items() if not isinstance(value, dict | list)}
    source = f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}"
    try:
        version = client.create_model_version(name, source, run_id=run.info.run_id, tags=tags)
    except RestException as error:
        raise ValueError(f"MLflow did not register {name!r}: {str(error).splitlines()[0]}") from error
    return version.version
