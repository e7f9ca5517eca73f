"""What a search can be after: any metric of the scores, what is forgotten, and what a point stores."""

from __future__ import annotations

from dataclasses import dataclass

from fine_core.evaluation.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class Objective:
    """`result`: its name among the metrics of a point's result."""

    result: str
    lower_is_better: bool = True

    @property
    def direction(self) -> str:
        """As Optuna calls it."""
        return "minimize" if self.lower_is_better else "maximize"


OBJECTIVES = {
    **{name: Objective(result=name, lower_is_better=metric.lower_is_better) for name, metric in METRICS.items()},
    "forgetting": Objective(result="forgetting/source_fid"),
    "serve_bytes": Objective(result="serve_bytes"),
    "initialize_bytes": Objective(result="initialize_bytes"),
}


def metrics_among(objectives: tuple[str, ...]) -> tuple[str, ...]:
    """The objectives that are metrics of a score."""
    return tuple(name for name in objectives if name in METRICS)
