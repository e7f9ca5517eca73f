"""The user's own model, as it is: no step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fine_core.checkpoints.native import load_model
from fine_core.dit import DiT, ModelSize
from trainables.initializations.base import Initialization, Setting
from trainables.specs.models import BaseModelSpec, GivenSpec
from trainables.specs.options import Options
from trainables.storage.files import MODEL_FILE
from trainables.storage.store import Store
from trainables.training.phase import Phase


class GivenRecipe:
    skips_parameters = False
    phases = (Phase(name="given", steps=0, lr=0.0),)

    def __init__(self, model: DiT) -> None:
        self.model = model

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        return self.model

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Given(Initialization):
    name = "given"
    summary = "the given model, as it is"
    needs_source = True

    def spec(self, setting: Setting, options: Options | None) -> GivenSpec:
        if setting.source is None:
            raise ValueError("initialization 'given' is the model of --source; name one")
        return GivenSpec(source=setting.source)

    def sizes(self, setting: Setting, options: Options | None, asked: Sequence[ModelSize]) -> list[ModelSize]:
        """Its own, whatever is asked."""
        return [setting.largest.size]

    def steps(self, setting: Setting, options: Options | None, asked: int) -> int:
        return 0

    def recipe(self, job: BaseModelSpec, store: Store) -> GivenRecipe:
        (source,) = job.needs
        return GivenRecipe(load_model(store.fetch(source, MODEL_FILE), expect=source.model))
