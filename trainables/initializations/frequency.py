"""Low frequencies of an ancestor's weights over depth and width (see fine_core.initializers.frequency)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers import frequency
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.base import check
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Choice, Options, option

known_as("frequency", frequency.Frequency)


@spec("frequency-options")
class FrequencyOptions(Options):
    group: ClassVar[str] = "frequency"
    kept_share: float = option(
        0.5,
        "share of the frequencies that is kept of each axis",
        search=Choice(name="kept_share", values=(0.25, 0.5, 1.0)),
        changes_artifact=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.kept_share <= 1, f"kept_share is {self.kept_share}; it must be above 0 and at most 1")


class Frequency(Inheriting):
    name = "frequency"
    summary = "low frequencies of the ancestor's weights"
    options = FrequencyOptions

    def form(self, setting: Setting, options: Options | None) -> frequency.Frequency:
        assert isinstance(options, FrequencyOptions)
        return frequency.Frequency(kept_share=options.kept_share)
