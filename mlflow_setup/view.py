"""A saved chart view of the experiment: its link opens FID against parameters."""

from __future__ import annotations

import hashlib
import json
import time

from mlflow_setup.runs import PARENT_TAG
from mlflow_setup.tracking import Tracking, equal_to


def save_chart_view(tracking: Tracking, sweep_id: str, parent_id: str, dataset: str, short_name: str) -> str:
    """Store a view of one sweep's points on one dataset in the experiment's tags. Returns the part of its address that
    follows the server's address. Points on different datasets never share a chart.

    The tag's format is that of the MLflow UI (read by version 3.17); the report's own figures do not depend on it.
    """
    slug = f"front-{sweep_id}-{hashlib.sha256(dataset.encode()).hexdigest()[:10]}"
    section = "fine-sweeps-section"
    scatter = {"type": "SCATTER", "uuid": "fid-params", "metricSectionId": section, "isGenerated": False}
    scatter |= {"deleted": False, "runsCountToCompare": 500}
    scatter |= {"xaxis": {"key": "params_total", "type": "METRIC"}, "yaxis": {"key": "fid", "type": "METRIC"}}
    stored = scatter | {"uuid": "fid-serve-bytes", "xaxis": {"key": "serve_bytes", "type": "METRIC"}}
    cost = scatter | {"uuid": "fid-train-s", "xaxis": {"key": "train_s", "type": "METRIC"}}
    loss = {"type": "LINE", "uuid": "loss", "metricSectionId": section, "isGenerated": False, "deleted": False}
    loss |= {"runsCountToCompare": 500, "metricKey": "train/loss", "selectedMetricKeys": ["train/loss"]}
    loss |= {"xAxisKey": "step", "lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear"}
    state = {
        "searchFilter": f"tags.`{PARENT_TAG}` = '{parent_id}' and tags.`dataset` {equal_to(dataset)}",
        "orderByKey": "metrics.`fid`",  # any order except by date lists child runs flat; charts draw the listed runs
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "compareRunCharts": [scatter, stored, cost, loss],
        "compareRunSections": [
            {
                "uuid": section,
                "name": f"FID against size on {short_name}",  # the UI sorts by name: before forgetting/*
                "display": True,
                "isReordered": False,
                "deleted": False,
                "columns": 2,
                "cardHeight": 420,
            }
        ],
        "runsHiddenMode": "SHOWALL",
        "hideEmptyCharts": True,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "viewMaximized": True,
    }
    now_ms = int(time.time() * 1000)
    view = {"name": f"Size against FID on {short_name}", "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(state)}
    tracking.client.set_experiment_tag(tracking.experiment_id, f"mlflow.sharedViewState.{slug}", json.dumps(view))
    return f"/#/experiments/{tracking.experiment_id}/runs?viewStateShareKey={slug}&compareRunsMode=CHART"
