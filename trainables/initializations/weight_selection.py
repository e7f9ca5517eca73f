"""Weight selection: evenly spaced elements of an ancestor's tensors (see fine_core.initializers.weight_selection)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers import weight_selection
from fine_core.initializers.weight_selection import BLOCK_CHOICES
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Options, option

known_as("weight-selection", weight_selection.WeightSelection)


@spec("weight-selection-options")
class WeightSelectionOptions(Options):
    """Of both variants."""

    group: ClassVar[str] = "weight-selection"
    blocks: str = option("first", "blocks of the ancestor that are taken: the first, or evenly spaced", choices=BLOCK_CHOICES)


class WeightSelection(Inheriting):
    name = "weight-selection"
    summary = "evenly spaced elements of the ancestor's tensors, as published"
    options = WeightSelectionOptions
    selection = "official"

    def form(self, setting: Setting, options: Options | None) -> weight_selection.WeightSelection:
        assert isinstance(options, WeightSelectionOptions)
        return weight_selection.WeightSelection(selection=self.selection, blocks=options.blocks)


class WeightSelectionHeads(WeightSelection):
    name = "weight-selection-heads"
    summary = "the same, whole heads and the same channels everywhere"
    selection = "heads"
