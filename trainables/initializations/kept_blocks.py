"""Heur-LG and Auto-LG: blocks of an ancestor, and random ones (see fine_core.initializers.kept_blocks)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers.kept_blocks import KeptBlocks
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Choice, Options, option

known_as("kept-blocks", KeptBlocks)


@spec("heur-lg-options")
class HeurOptions(Options):
    group: ClassVar[str] = "heur-lg"
    blocks: int = option(
        3, "last blocks of the ancestor that are kept", search=Choice(name="blocks", values=(1, 2, 3)), changes_artifact=True
    )


class HeurLG(Inheriting):
    name = "heur-lg"
    summary = "the ancestor's last blocks on top, random ones below"
    options = HeurOptions

    def form(self, setting: Setting, options: Options | None) -> KeptBlocks:
        assert isinstance(options, HeurOptions)
        return KeptBlocks(blocks=options.blocks, top=True)


@spec("auto-lg-options")
class AutoOptions(Options):
    group: ClassVar[str] = "auto-lg"
    blocks: int = option(
        6, "first blocks of the ancestor that are kept", search=Choice(name="blocks", values=(2, 4, 6)), changes_artifact=True
    )


class AutoLG(Inheriting):
    name = "auto-lg"
    summary = "the ancestor's first blocks at the bottom, random ones above"
    options = AutoOptions

    def form(self, setting: Setting, options: Options | None) -> KeptBlocks:
        assert isinstance(options, AutoOptions)
        return KeptBlocks(blocks=options.blocks, top=False)
