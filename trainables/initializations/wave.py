"""WAVE: shared templates, scaled into every layer (see fine_core.initializers.wave)."""

from __future__ import annotations

from typing import ClassVar

from fine_core.initializers import wave
from fine_core.initializers.wave import SCALER_INITS
from trainables.initializations.base import Setting
from trainables.initializations.inheriting import Inheriting
from trainables.specs.base import check
from trainables.specs.identity import known_as, spec
from trainables.specs.options import Choice, Options, option

known_as("wave", wave.Wave)


@spec("wave-options")
class WaveOptions(Options):
    group: ClassVar[str] = "wave"
    template_ratio: float = option(
        1.0,
        "number of templates divided by that which takes as many bytes as FINE",
        search=Choice(name="template_ratio", values=(0.5, 1.0, 1.5)),
        changes_artifact=True,
    )
    template_width: int = option(0, "rows and columns of a template (0: the source's width)")
    scaler_init: str = option("linear", "initial values of the scalers", choices=SCALER_INITS)
    scaler_steps: int = option(300, "training steps in which only the scalers are trained (0: none)")
    scaler_lr: float = option(1e-2, "learning rate of the scaler steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.template_ratio > 0, f"template_ratio is {self.template_ratio}; it must be positive")
        check(self.template_width >= 0, f"template_width is {self.template_width}; it must be 0 or more")
        check(self.scaler_lr > 0, f"scaler_lr is {self.scaler_lr}; it must be positive")


class Wave(Inheriting):
    name = "wave"
    summary = "pre-trained templates, mixed by scalers in every layer"
    options = WaveOptions

    def form(self, setting: Setting, options: Options | None) -> wave.Wave:
        assert isinstance(options, WaveOptions)
        return wave.Wave(
            template_ratio=options.template_ratio,
            template_width=options.template_width,
            scaler_init=options.scaler_init,
        )

    def coefficients(self, options: Options | None) -> tuple[int, float]:
        assert isinstance(options, WaveOptions)
        return options.scaler_steps, options.scaler_lr
