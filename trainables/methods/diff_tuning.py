"""Diff-Tuning and its arms: reconsolidation psi on the target, retention xi on the knowledge bank, over any parameters.

arXiv 2406.00773, section 3, and the authors' released code.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch

from fine_core.dit import DiT
from fine_core.parameterizations.ranks import NUM_LEVELS
from fine_core.retention import FAMILIES, RetentionSchedule
from trainables.methods.base import Start, TransferData, TransferMethod
from trainables.specs.base import TrainingSpec, check
from trainables.specs.identity import spec
from trainables.specs.options import Choice, Options, Parameter, Point, Range, of_kind, option
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource, RehearsingBatches, uniform_probabilities

# One parameter for every family that has one. Each has a name of its own: a range of `power` means nothing to `cutoff`.
FAMILY_PARAMETERS = (
    Range(name="power", low=0.1, high=3.0, only_if=("family", "power")),
    Range(name="complement", low=0.1, high=3.0, log=True, only_if=("family", "complement")),
    Range(name="cutoff", low=50, high=950, integer=True, only_if=("family", "cutoff")),
)
PAPER_FORMULA_WEIGHT = 1.0  # of retention; the released code has 0.1, the default (section 3)


@spec("diff-tuning")
class ScheduleOptions(Options):
    """How adaptation and retention are spread over the timesteps.

    `weighting`: the schedule as probabilities of timesteps (the released code), or as loss weights (the paper's formula).
    """

    group: ClassVar[str] = "diff-tuning"
    schedule: str = option(
        "linear",
        "linear, power:S, complement:S, cosine, constant or cutoff:T",
        search=Choice(name="family", values=tuple(FAMILIES)),
        label="{}",
        old_names=("--schedules", "--schedule"),
    )
    weighting: str = option(
        "sampling",
        "schedules set the probabilities of timesteps (sampling), or the weights of losses",
        choices=("sampling", "loss"),
        old_names=("--weighting",),
    )

    def __post_init__(self) -> None:
        check(isinstance(self.schedule, str), f"schedule is {self.schedule!r}; it must be a text")
        super().__post_init__()
        object.__setattr__(self, "schedule", str(self.retention))  # equal schedules, equal texts

    @property
    def retention(self) -> RetentionSchedule:
        return RetentionSchedule.parse(self.schedule)

    def search(self, name: str, *, steps: int) -> tuple[Parameter, ...]:
        found = super().search(name, steps=steps)
        return (*found, *FAMILY_PARAMETERS) if name == "schedule" else found

    @classmethod
    def value_at(cls, name: str, point: Point) -> Any:
        if name != "schedule":
            return super().value_at(name, point)
        family = point["family"]
        number = float(point[family]) if family in point else None  # as parsed from text: equal points, equal ids
        return str(RetentionSchedule(family=family, parameter=number))

    def point_of(self, name: str) -> Point:
        if name != "schedule":
            return super().point_of(name)
        family, number = self.retention.family, self.retention.parameter
        return {"family": family, family: int(number) if family == "cutoff" and number is not None else number}


@spec("retention")
class RetentionOptions(Options):
    """What is rehearsed: `source_ratio` of a batch, at `retention_weight` times the target's mean loss."""

    group: ClassVar[str] = "diff-tuning"
    retention_weight: float = option(
        0.1,
        "weight of the loss on images from the knowledge bank",
        search=Range(name="retention_weight", low=0.01, high=2.0, log=True),
        old_names=("--retention-weight",),
    )
    source_ratio: float = option(
        0.2,
        "share of a batch that comes from the knowledge bank",
        search=Range(name="source_ratio", low=0.05, high=0.5),
        old_names=("--source-ratio",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.retention_weight >= 0, f"retention_weight is {self.retention_weight}; it must be 0 or more")
        at_most = 0 <= self.source_ratio < 1 and (self.source_ratio > 0 or self.retention_weight == 0)
        check(at_most, f"source_ratio is {self.source_ratio}; it must be between 0 and 1")

    def canonical(self) -> Self:
        return self if self.retention_weight > 0 else replace(self, source_ratio=0.0)

    def per_batch(self, batch_size: int) -> int:
        """Images of a batch that are rehearsed. Raises ValueError if none is left for the target."""
        if self.retention_weight == 0:
            return 0
        number = max(1, round(batch_size * self.source_ratio))
        check(number < batch_size, f"a source_ratio of {self.source_ratio} leaves no target image in a batch of {batch_size}")
        return number

    def check_training(self, training: TrainingSpec) -> None:
        self.per_batch(training.batch_size)


class DiffTuning(TransferMethod):
    """Which halves of the method act: psi (`reconsolidates`) and xi (`retains`).

    `distils`: instead of bank images, target images under the null label follow the frozen base model (the KD arm; the
    paper leaves its data, label and weight open: these are ours).
    """

    def __init__(
        self, name: str, parameters: TransferMethod, *, reconsolidates: bool = True, retains: bool = True, distils: bool = False
    ) -> None:
        self.name, self.parameters = name, parameters
        self.reconsolidates, self.retains, self.distils = reconsolidates, retains, distils
        own = (ScheduleOptions, RetentionOptions) if retains else (ScheduleOptions,)
        self.options = (*own, *parameters.options)
        self.lr_factor = parameters.lr_factor

    def uses_bank(self, options: tuple[Options, ...]) -> bool:
        return self.retains and not self.distils and of_kind(options, RetentionOptions).retention_weight > 0

    def known_good(self, options: tuple[Options, ...]) -> list[tuple[Options, ...]]:
        """The released code's weight of retention and that of the paper's formula."""
        if not self.retains:
            return [options]
        formula = replace(of_kind(options, RetentionOptions), retention_weight=PAPER_FORMULA_WEIGHT)
        return [options, tuple(formula if isinstance(one, RetentionOptions) else one for one in options)]

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        self.parameters.prepare(model, options, start)

    def merge(self, model: DiT) -> DiT:
        return self.parameters.merge(model)

    def batches(self, transfer: TransferSpec, data: TransferData) -> BatchSource:
        chosen, size = of_kind(transfer.options, ScheduleOptions), transfer.training.batch_size
        schedule, sampled = chosen.retention, chosen.weighting == "sampling"
        uniform, ones = uniform_probabilities(), torch.ones(NUM_LEVELS)
        retained = of_kind(transfer.options, RetentionOptions).per_batch(size) if self.retains else 0
        adapts = {"probabilities": uniform, "weights": ones}
        if self.reconsolidates:
            adapts = {
                "probabilities": schedule.target_probabilities() if sampled else uniform,
                "weights": ones if sampled else schedule.psi(),
            }
        target = self.target_batches(transfer, data, batch_size=size - retained, **adapts)
        if not retained:
            return target
        return RehearsingBatches(
            target=target,
            rehearsed=data.target if self.distils else data.bank,
            rehearsed_per_batch=retained,
            probabilities=schedule.source_probabilities() if sampled else uniform,
            weights=ones if sampled else schedule.xi(),
            retention_weight=of_kind(transfer.options, RetentionOptions).retention_weight,
            teacher=copy.deepcopy(data.base).to(data.device) if self.distils else None,
        )
