"""Attention that starts as in pre-trained models, without any training (see fine_core.initializers.mimetic)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.inherited import fresh_model
from fine_core.initializers.mimetic import mimetic_
from trainables.initializations.base import Initialization, Setting
from trainables.initializations.scratch import ScratchRecipe
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import Options
from trainables.storage.store import Store


@spec("mimetic")
class MimeticSpec(InitializationSpec):
    name: ClassVar[str] = "mimetic"


def _fresh(config: DiTConfig, seed: int) -> DiT:
    return mimetic_(fresh_model(config, seed), seed=seed)


class Mimetic(Initialization):
    name = "mimetic"
    summary = "attention weights drawn like those of pre-trained models"

    def spec(self, setting: Setting, options: Options | None) -> MimeticSpec:
        return MimeticSpec()

    def recipe(self, job: BaseModelSpec, store: Store) -> ScratchRecipe:
        return ScratchRecipe(job, _fresh)
