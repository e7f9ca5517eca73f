"""The child run of every point in MLflow: opened when its training starts, ended with its scores or its failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlflow_setup.runs import SweepRuns
from sweeps.planning.names import MethodNames
from sweeps.results.points import PointResult, sample_picture
from trainables.failures import Failure
from trainables.specs.models import PointSpec
from trainables.specs.options import to_values
from trainables.specs.scores import ScoreSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.record import History, Record
from trainables.storage.store import Store


class Recorder:
    """Writes points into a sweep's runs. A point's run is known by the id of its model."""

    def __init__(self, runs: SweepRuns, names: MethodNames, label: Callable[[PointSpec], str], store: Store) -> None:
        self.runs, self.names, self.label, self.store = runs, names, label, store

    def start(self, model: PointSpec) -> None:
        size, method = model.size, self.names.of(model)
        tags = {"method": method, "initialization": model.initialization.name, "transfer": model.transfer_name}
        tags |= {"dataset": model.dataset, "depth": str(size.depth), "width": str(size.width), "pareto": "unknown"}
        params: dict[str, Any] = {"method": method, "depth": size.depth, "width": size.width, "num_heads": size.num_heads}
        training = model.training
        params |= {"seed": model.seed, "steps": training.steps, "batch_size": training.batch_size, "lr": training.lr}
        params |= model.initialization.details
        if isinstance(model, TransferSpec):
            params |= {"base_trial_id": model.base.id, **to_values(model.options)}
        self.runs.start_child(model.id, self.label(model), tags, params)

    def progress(self, model_id: str, history: History) -> None:
        self.runs.log_history(model_id, history)

    def rung(self, score: ScoreSpec, record: Record) -> None:
        """The score at a rung, which is a stretch of its transfer's run."""
        self.runs.log_history(score.trained.id, record.history)
        self.runs.log_metrics(score.trained.id, {"proxy/fid": record.metrics["fid"]}, step=score.total_steps)

    def finish(self, result: PointResult) -> None:
        self.runs.tag_child(result.id, "protocol", str(result.protocol))
        picture = sample_picture(result, self.store)
        self.runs.finish_child(result.id, result.metrics, result.history, [] if picture is None else [picture])

    def complete(self, result: PointResult) -> None:
        """Give a finished point its finished run, if it has none: of an earlier sweep, or computed while MLflow was away."""
        if not self.runs.is_finished(result.id):
            self.start(result.job)
            self.finish(result)

    def stop(self, model_id: str, outcome: str) -> None:
        self.runs.stop_child(model_id, outcome)

    def fail(self, model_id: str, failure: Failure) -> None:
        self.runs.fail_child(model_id, failure.reason, kind=str(failure.kind), log=failure.log)
