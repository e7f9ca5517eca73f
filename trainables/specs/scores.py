"""Specs of scores, apart from the models that they are of: another protocol scores again and trains nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fine_core.dit import DiTConfig
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.sampling.schedulers import check_sampler_fits
from trainables.specs.base import JobSpec, SourceSpec, check
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, DecompositionSpec, LearngeneSpec, MilestoneSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import RungSpec, TransferSpec

Scored = BaseModelSpec | TransferSpec | RungSpec | MilestoneSpec | SourceSpec | DecompositionSpec | LearngeneSpec


@spec("score")
class ScoreSpec(JobSpec):
    """One score of one model, on the dataset of `extractor`.

    `replaced_steps`: so many denoising steps at the data end are the base model's, under the null label (the chain of
    forgetting, arXiv 2406.00773, section 2).
    """

    kind: ClassVar[str] = "score"
    scored: Scored
    evaluation: EvaluationSpec
    extractor: ExtractorSpec
    seed: int = 0
    replaced_steps: int = 0

    def __post_init__(self) -> None:
        steps = self.evaluation.sampler.sampling_steps
        check(0 <= self.replaced_steps <= steps, f"replaced_steps is {self.replaced_steps}; it must be 0 to {steps}")
        check(
            self.replaced_steps == 0 or self.model.has_null_label,
            "steps of the base are taken under the null label, which this model does not have; leave the curve out",
        )
        check_sampler_fits(self.evaluation.sampler.sampler, self.model.parameterization)
        self.extractor.check_metrics(self.evaluation.metrics)

    @property
    def dataset(self) -> str:
        return self.extractor.dataset

    @property
    def partial(self) -> RungSpec | MilestoneSpec | None:
        """What is scored, where it is a training on its way."""
        return self.scored if isinstance(self.scored, RungSpec | MilestoneSpec) else None

    @property
    def rung(self) -> RungSpec | None:
        return self.scored if isinstance(self.scored, RungSpec) else None

    @property
    def model(self) -> DiTConfig:
        return self.trained.model  # type: ignore[attr-defined]

    @property
    def trained(self) -> JobSpec:
        """The job that makes the scored model."""
        return self.scored.trained if isinstance(self.scored, RungSpec | MilestoneSpec) else self.scored

    @property
    def label(self) -> str:
        if self.partial is not None:
            return f"{self.trained.label} to step {self.partial.step}"
        what = f", {self.replaced_steps} steps of its base" if self.replaced_steps else ""
        return f"score of {self.trained.label}{what}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        if self.partial is not None:
            return (self.extractor, *self.trained.needs)
        base = (self.scored.base,) if isinstance(self.scored, TransferSpec) else ()  # a delta is nothing without it
        return (self.extractor, self.trained, *base)

    @property
    def run_id(self) -> str:
        return self.id if self.partial is None else self.trained.run_id

    @property
    def total_steps(self) -> int:
        return 0 if self.rung is None else self.rung.step  # a milestone is passed on the way of its base model


def null_label(evaluation: EvaluationSpec) -> EvaluationSpec:
    """The same protocol under the null label, where guidance has nothing to guide."""
    return replace(evaluation, unconditional=True, sampler=replace(evaluation.sampler, guidance_scale=1.0))
