"""Ways to start a base model, one file each: one registry behind the grid and its command line."""

from __future__ import annotations

from trainables.initializations.base import Initialization, Setting
from trainables.initializations.fine import Fine
from trainables.initializations.frequency import Frequency
from trainables.initializations.full import Full
from trainables.initializations.given import Given
from trainables.initializations.he import He
from trainables.initializations.kept_blocks import AutoLG, HeurLG
from trainables.initializations.ligo import Ligo
from trainables.initializations.mimetic import Mimetic
from trainables.initializations.per_layer_svd import PerLayerSvd, PerLayerSvdMatched
from trainables.initializations.scratch import Scratch
from trainables.initializations.share import ShareInit, Sws
from trainables.initializations.tleg import Tleg
from trainables.initializations.wave import Wave
from trainables.initializations.weight_selection import WeightSelection, WeightSelectionHeads

__all__ = ["INITIALIZATIONS", "Initialization", "Setting", "initialization"]

INITIALIZATIONS: dict[str, Initialization] = {
    one.name: one
    for one in (
        Fine(),
        Scratch(),
        He(),
        Mimetic(),
        ShareInit(),
        Sws(),
        Tleg(),
        Wave(),
        HeurLG(),
        AutoLG(),
        WeightSelection(),
        WeightSelectionHeads(),
        PerLayerSvd(),
        PerLayerSvdMatched(),
        Frequency(),
        Ligo(),
        Full(),
        Given(),
    )
}


def initialization(name: str) -> Initialization:
    """Raises ValueError for an unknown initialization."""
    if name not in INITIALIZATIONS:
        raise ValueError(f"unknown initialization {name!r}; choose from {', '.join(INITIALIZATIONS)}")
    return INITIALIZATIONS[name]
