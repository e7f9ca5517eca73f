"""Full pre-training of every size: what the one-off artifacts of all other initializations are to save.

A model trains as long as a learngene or an ancestor does (FINE, arXiv 2409.19289, section 4.2: the cost of N sizes).
"""

from __future__ import annotations

from typing import ClassVar

from trainables.initializations.base import Initialization, Setting
from trainables.initializations.scratch import ScratchRecipe
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import Options
from trainables.storage.store import Store


@spec("full-pretraining")
class FullSpec(InitializationSpec):
    """Start from DiT's own initialization, to train as long as what others inherit from."""

    name: ClassVar[str] = "full"


class Full(Initialization):
    name = "full"
    summary = "full pre-training of every size"

    def spec(self, setting: Setting, options: Options | None) -> FullSpec:
        return FullSpec()

    def steps(self, setting: Setting, options: Options | None, asked: int) -> int:
        return max(asked, setting.source_steps)

    def recipe(self, job: BaseModelSpec, store: Store) -> ScratchRecipe:
        return ScratchRecipe(job)
