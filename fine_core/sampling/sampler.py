"""The image sampler: a scheduler of diffusers, the number of denoising steps and the guidance."""

from __future__ import annotations

from dataclasses import dataclass

from fine_core.parameterizations.ddpm import BETA_END, BETA_START, NUM_TIMESTEPS

SAMPLERS = ("ddim", "dpm-solver++", "ddpm")


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """How images are drawn from a model: scheduler, number of denoising steps and guidance (1.0 = none)."""

    sampler: str = "ddim"
    sampling_steps: int = 50
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if not 1 <= self.sampling_steps <= NUM_TIMESTEPS:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it must be between 1 and {NUM_TIMESTEPS}")
        if self.guidance_scale < 1.0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be at least 1 (1 = no guidance)")

    @property
    def passes_per_sample(self) -> int:
        """Forward passes of the model for one image."""
        return self.sampling_steps * (2 if self.guidance_scale > 1 else 1)


def make_scheduler(spec: SamplerSpec, learn_sigma: bool):
    """diffusers' scheduler on DiT's linear schedule."""
    # Imported late: training runs where diffusers is not installed.
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    betas = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "linear",
    }
    if spec.sampler == "ddim":
        return DDIMScheduler(**betas, clip_sample=False)
    if spec.sampler == "dpm-solver++":
        return DPMSolverMultistepScheduler(**betas, algorithm_type="dpmsolver++")
    variance_type = "learned_range" if learn_sigma else "fixed_small"
    return DDPMScheduler(**betas, clip_sample=False, variance_type=variance_type)
