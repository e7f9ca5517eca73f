"""TLEG: blocks that grow linearly with the depth (see fine_core.initializers.tleg)."""

from __future__ import annotations

from fine_core.initializers import tleg
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.identity import known_as
from trainables.specs.options import Options

known_as("tleg", tleg.Tleg)


class Tleg(Inheriting):
    name = "tleg"
    summary = "two pre-trained blocks, mixed linearly over the depth"

    def form(self, setting: Setting, options: Options | None) -> tleg.Tleg:
        return tleg.Tleg()
