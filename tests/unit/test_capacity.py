"""Whether nodes are starting, as both of Ray's autoscalers say it."""

import json

import pytest

import sweeps.execution.cluster


@pytest.mark.parametrize(
    ("report", "starting"),
    [
        ({"pending_nodes": [], "pending_launches": {}}, False),
        ({"pending_nodes": [["10.0.0.1", "worker", "setting-up"]], "pending_launches": {}}, True),
        ({"pending_nodes": [], "pending_launches": {"worker": 2}}, True),
        (None, False),
    ],
)
def test_the_first_autoscaler_tells_by_its_report(monkeypatch, report, starting):
    status = None if report is None else json.dumps({"autoscaler_report": report}).encode()
    monkeypatch.setattr(sweeps.execution.cluster, "_internal_kv_get", lambda key: status)
    monkeypatch.setattr(sweeps.execution.cluster, "_instances_starting", lambda: False)
    assert sweeps.execution.cluster._nodes_starting() is starting


def test_the_second_autoscaler_is_asked_too(monkeypatch):
    monkeypatch.setattr(sweeps.execution.cluster, "_internal_kv_get", lambda key: None)
    monkeypatch.setattr(sweeps.execution.cluster, "_instances_starting", lambda: True)
    assert sweeps.execution.cluster._nodes_starting() is True
