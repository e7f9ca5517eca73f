"""The base of initializations that inherit from a pre-trained model: its artifacts, phases and costs are theirs in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import ConstrainedInheritance, Inheritance, Inherited
from fine_core.initializers.rebuilt import RebuiltDiT, merge
from fine_core.randomness import stream_seed
from trainables.initializations.base import Initialization, Setting
from trainables.jobs.inherited import AncestorKind, InheritedKind
from trainables.specs.base import TrainingSpec
from trainables.specs.inherited import AncestorSpec, InheritedSpec, InheritingSpec
from trainables.specs.models import BaseModelSpec
from trainables.specs.options import Options
from trainables.storage.files import INHERITED_FILE
from trainables.storage.store import Store
from trainables.training.phase import Phase


class InheritingRecipe:
    """Phase 0 trains what the form leaves open, if any steps are given to it; the last phase trains the dense model."""

    skips_parameters = False

    def __init__(self, job: BaseModelSpec, start: InheritingSpec, inherited: Inherited) -> None:
        self.job, self.start, self.inherited = job, start, inherited
        free = Phase(name="free", steps=job.training.steps - start.coefficient_steps, lr=job.training.lr)
        coefficients = Phase(name="coefficients", steps=start.coefficient_steps, lr=start.coefficient_lr)
        self.phases = (coefficients, free) if start.coefficient_steps else (free,)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT | RebuiltDiT:
        if phase == 1:
            assert isinstance(previous, RebuiltDiT)
            return merge(previous)
        seed = stream_seed(self.job.seed, "init")
        model = self.start.inherited.form.start(self.inherited, self.job.model, seed=seed)
        return merge(model) if isinstance(model, RebuiltDiT) and len(self.phases) == 1 else model

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Inheriting(Initialization):
    """Keeps a form of the grid's largest model, or of the given one: of an ancestor, or trained in the form itself."""

    kinds = (AncestorKind(), InheritedKind())

    @abstractmethod
    def form(self, setting: Setting, options: Options | None) -> Inheritance:
        """What is kept and how sizes start. Raises ValueError for options that do not fit."""

    def coefficients(self, options: Options | None) -> tuple[int, float]:
        """Steps and learning rate of the phase that trains what the form leaves open; no steps where it leaves nothing."""
        return 0, 0.0

    def source(self, setting: Setting) -> DiTConfig:
        """The model that is inherited from."""
        return setting.largest

    def spec(self, setting: Setting, options: Options | None) -> InheritingSpec:
        form, ancestor, model = self.form(setting, options), setting.source, self.source(setting)
        pretraining = {"training": setting.training_for(setting.source_steps), "seed": setting.source_seed}
        if ancestor is None and not isinstance(form, ConstrainedInheritance):
            ancestor = AncestorSpec(dataset=setting.dataset, model=model, **pretraining)
        own = pretraining if ancestor is None else {"training": TrainingSpec(steps=0), "seed": getattr(ancestor, "seed", 0)}
        steps, lr = self.coefficients(options)
        inherited = InheritedSpec(
            initialization=self.name, form=form, dataset=setting.dataset, model=model, ancestor=ancestor, **own
        )
        return InheritingSpec(name=self.name, inherited=inherited, coefficient_steps=steps, coefficient_lr=lr)

    def refusal(self, setting: Setting, options: Options | None, size: ModelSize) -> str | None:
        return self.form(setting, options).refusal(self.source(setting).size, size)

    def steps(self, setting: Setting, options: Options | None, asked: int) -> int:
        return asked + (self.coefficients(options)[0] if setting.counts_free_steps else 0)

    def recipe(self, job: BaseModelSpec, store: Store) -> InheritingRecipe:
        start = job.initialization
        assert isinstance(start, InheritingSpec)
        return InheritingRecipe(job, start, Inherited.load(store.fetch(start.inherited, INHERITED_FILE)))
