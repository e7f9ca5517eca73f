"""How images are drawn: the image sampler, the number of denoising steps and the guidance."""

from __future__ import annotations

from dataclasses import dataclass, field

from fine_core.parameterizations.ddpm import NUM_TIMESTEPS
from fine_core.precision import PRECISIONS
from fine_core.sampling.schedulers import SAMPLERS


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """How images are drawn from a model: scheduler, number of denoising steps, guidance (1.0 = none), and the precision of the
    network's products (see `fine_core.precision`)."""

    sampler: str = "ddim"
    sampling_steps: int = 50
    guidance_scale: float = 1.0
    precision: str = field(default="fp32", metadata={"introduced": "fp32"})  # see ids of specs

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if not 1 <= self.sampling_steps <= NUM_TIMESTEPS:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it must be between 1 and {NUM_TIMESTEPS}")
        if self.guidance_scale < 1.0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be at least 1 (1 = no guidance)")

    @property
    def passes_per_sample(self) -> int:
        """Forward passes of the model for one image."""
        return self.sampling_steps * (2 if self.guidance_scale > 1 else 1)
