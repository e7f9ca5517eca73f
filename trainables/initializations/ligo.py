"""LiGO: a small model grown by learned linear maps (see fine_core.initializers.ligo)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiTConfig
from fine_core.initializers import ligo
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.base import check
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Options, option

known_as("ligo", ligo.Ligo)


@spec("ligo-options")
class LigoOptions(Options):
    group: ClassVar[str] = "ligo"
    growth_steps: int = option(100, "training steps in which only the growth maps are trained (0: none)")
    growth_lr: float = option(1e-2, "learning rate of the growth steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.growth_lr > 0, f"growth_lr is {self.growth_lr}; it must be positive")


class Ligo(Inheriting):
    name = "ligo"
    summary = "the smallest size, pre-trained and grown"
    options = LigoOptions

    def source(self, setting: Setting) -> DiTConfig:
        """The grid's smallest size: growth starts there."""
        return setting.smallest

    def form(self, setting: Setting, options: Options | None) -> ligo.Ligo:
        return ligo.Ligo()

    def coefficients(self, options: Options | None) -> tuple[int, float]:
        assert isinstance(options, LigoOptions)
        return options.growth_steps, options.growth_lr
