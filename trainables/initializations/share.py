"""Share-Init and SWS: one pre-trained block for each stage of layers (see fine_core.initializers.share)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers.share import Share
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Choice, Options, option

known_as("share", Share)


class ShareInit(Inheriting):
    name = "share"
    summary = "one pre-trained block, copied to every layer"

    def form(self, setting: Setting, options: Options | None) -> Share:
        return Share(stages=1)


@spec("sws-options")
class SwsOptions(Options):
    group: ClassVar[str] = "sws"
    stages: int = option(
        2,
        "stages of layers, each with a block of its own (1 is share)",
        search=Choice(name="stages", values=(1, 2, 3)),
        changes_artifact=True,
    )


class Sws(Inheriting):
    name = "sws"
    summary = "a pre-trained block for each stage of layers"
    options = SwsOptions

    def form(self, setting: Setting, options: Options | None) -> Share:
        assert isinstance(options, SwsOptions)
        return Share(stages=options.stages)
