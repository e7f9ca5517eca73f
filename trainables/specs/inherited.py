"""Specs of what base models inherit: ancestors, and what each initialization keeps of one."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiTConfig
from fine_core.initializers.inherited import Inheritance
from trainables.specs.base import JobSpec, SourceSpec, TrainingJobSpec, TrainingSpec, check
from trainables.specs.identity import spec
from trainables.specs.models import InitializationSpec, of_seed


@spec("ancestor")
class AncestorSpec(TrainingJobSpec):
    """A dense model, pre-trained from DiT's own initialization, that initializations inherit from."""

    kind: ClassVar[str] = "ancestor"
    dataset: str
    model: DiTConfig
    training: TrainingSpec
    seed: int = 0

    @property
    def label(self) -> str:
        return f"ancestor {self.model.size.name}" + of_seed(self.seed)


@spec("inherited")
class InheritedSpec(TrainingJobSpec):
    """What an initialization of the form `form` keeps: of `ancestor`, or, without one, of a model trained in the form itself.

    With an ancestor no step is taken: `training` has 0.
    """

    kind: ClassVar[str] = "inherited"
    initialization: str
    form: Inheritance
    dataset: str
    model: DiTConfig
    training: TrainingSpec
    ancestor: AncestorSpec | SourceSpec | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problem = self.form.misfit(self.model.size)
        check(problem is None, f"{self.initialization}: {problem}")

    @property
    def label(self) -> str:
        return f"what {self.initialization} keeps" + of_seed(self.seed)

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return () if self.ancestor is None else (self.ancestor,)


@spec("inheriting")
class InheritingSpec(InitializationSpec):
    """Start from what is kept; of the base model's training, train what the form leaves open alone for `coefficient_steps`."""

    name: str  # type: ignore[misc]
    inherited: InheritedSpec
    coefficient_steps: int = 0
    coefficient_lr: float = 0.0

    def __post_init__(self) -> None:
        steps = self.coefficient_steps
        check(steps >= 0, f"{self.name} trains its coefficients for {steps} steps; it must be 0 or more")

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.inherited,)

    @property
    def source_seed(self) -> int:
        return self.inherited.seed

    def check_steps(self, steps: int) -> None:
        own = self.coefficient_steps
        check(own <= steps, f"{self.name} trains its coefficients for {own} steps; it must be at most steps ({steps})")
