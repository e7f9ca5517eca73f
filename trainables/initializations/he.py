"""Kaiming-normal weights of the blocks in the place of DiT's Xavier ones (see fine_core.initializers.he)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.he import he_
from fine_core.initializers.inherited import fresh_model
from trainables.initializations.base import Initialization, Setting
from trainables.initializations.scratch import ScratchRecipe
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import Options
from trainables.storage.store import Store


@spec("he")
class HeSpec(InitializationSpec):
    name: ClassVar[str] = "he"


def _fresh(config: DiTConfig, seed: int) -> DiT:
    return he_(fresh_model(config, seed), seed=seed)


class He(Initialization):
    name = "he"
    summary = "Kaiming-normal weights in the blocks"

    def spec(self, setting: Setting, options: Options | None) -> HeSpec:
        return HeSpec()

    def recipe(self, job: BaseModelSpec, store: Store) -> ScratchRecipe:
        return ScratchRecipe(job, _fresh)
