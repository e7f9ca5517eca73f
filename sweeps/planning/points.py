"""What a sweep compares: models and the scores that are asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.specs.models import BaseModelSpec, DecompositionSpec, LearngeneSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.specs.transfers import TransferSpec


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """A model and its scores: on its own dataset, and, of a transfer, on its source domain after it and before it.

    The two on the source domain are None where they are not asked for or cannot be had. `milestones` are scores of a base model
    on its way. Known by the model's id.
    """

    model: BaseModelSpec | TransferSpec
    score: ScoreSpec
    forgetting: ScoreSpec | None = None
    forgetting_before: ScoreSpec | None = None
    milestones: tuple[ScoreSpec, ...] = ()

    @property
    def id(self) -> str:
        return self.model.id

    @property
    def scores(self) -> tuple[ScoreSpec, ...]:
        """The scores of this very model, and of it on its way."""
        return (self.score, *(() if self.forgetting is None else (self.forgetting,)), *self.milestones)

    @property
    def all_scores(self) -> tuple[ScoreSpec, ...]:
        """These, and that of the base model before the transfer."""
        return self.scores if self.forgetting_before is None else (*self.scores, self.forgetting_before)

    @property
    def task(self) -> Task:
        return Task(job=self.model, scores=self.scores)


@dataclass(frozen=True, kw_only=True)
class ForgettingCurve:
    """The chain-of-forgetting curve of a transfer: one score for each number of steps that the base model takes back."""

    transfer: TransferSpec
    scores: tuple[ScoreSpec, ...]


@dataclass(frozen=True, kw_only=True)
class DecompositionScores:
    """A given model on its way to a learngene: scores of the model, of its decomposition and of the trained learngene."""

    decomposition: DecompositionSpec
    learngene: LearngeneSpec
    source: ScoreSpec
    decomposed: ScoreSpec
    trained: ScoreSpec

    @property
    def all(self) -> tuple[ScoreSpec, ...]:
        return (self.source, self.decomposed, self.trained)
