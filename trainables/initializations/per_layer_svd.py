"""Factors of their own for every layer of an ancestor (see fine_core.initializers.per_layer_svd)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers import per_layer_svd
from fine_core.initializers.per_layer_svd import rank_matched_to_shared_factors
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.base import check
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Options, option

known_as("per-layer-svd", per_layer_svd.PerLayerSvd)


@spec("per-layer-svd-options")
class PerLayerSvdOptions(Options):
    """Of both variants."""

    group: ClassVar[str] = "per-layer-svd"
    sigma_steps: int = option(300, "training steps in which only sigma is trained (0: none)")
    sigma_lr: float = option(1e-2, "learning rate of the sigma steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.sigma_lr > 0, f"sigma_lr is {self.sigma_lr}; it must be positive")


class PerLayerSvd(Inheriting):
    name = "per-layer-svd"
    summary = "every layer's own singular value decomposition, complete"
    options = PerLayerSvdOptions

    def form(self, setting: Setting, options: Options | None) -> per_layer_svd.PerLayerSvd:
        return per_layer_svd.PerLayerSvd()

    def coefficients(self, options: Options | None) -> tuple[int, float]:
        assert isinstance(options, PerLayerSvdOptions)
        return options.sigma_steps, options.sigma_lr


class PerLayerSvdMatched(PerLayerSvd):
    name = "per-layer-svd-matched"
    summary = "the same, of a rank that takes no more bytes than FINE"

    def form(self, setting: Setting, options: Options | None) -> per_layer_svd.PerLayerSvd:
        return per_layer_svd.PerLayerSvd(rank=rank_matched_to_shared_factors(self.source(setting).size))
