"""Image samplers by name: a scheduler of diffusers for each parameterization that the sampler fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fine_core.dit import DiTConfig
from fine_core.parameterizations.ddpm import BETA_END, BETA_START, NUM_TIMESTEPS


class Scheduler(Protocol):
    """What sampling asks of a scheduler: diffusers' interface."""

    timesteps: Tensor
    init_noise_sigma: float

    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor: ...
    def step(self, model_output: Tensor, timestep: float, sample: Tensor, **options: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class ImageSampler:
    """One entry of the registry.

    `schedulers`: makes the scheduler for a model, by the name of the model's parameterization. `draws_noise`: its step takes
    a generator. `takes_variance`: its step takes the learned variance, if the model has one. `guided_channels`: the first
    channels, on which guidance acts alone; None for all.
    """

    name: str
    schedulers: Mapping[str, Callable[[DiTConfig], Scheduler]]
    draws_noise: bool = False
    takes_variance: bool = False
    guided_channels: int | None = None


# DiT's linear schedule. diffusers is imported late: training runs where it is not installed.
_DDPM: dict[str, Any] = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "linear",
}


def _ddim(config: DiTConfig) -> Scheduler:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**_DDPM, clip_sample=False)


def _dpm_solver(config: DiTConfig) -> Scheduler:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**_DDPM, algorithm_type="dpmsolver++")


def _ddpm(config: DiTConfig) -> Scheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_DDPM, clip_sample=False, variance_type="learned_range" if config.learn_sigma else "fixed_small")


class EvenlySpaced:
    """A scheduler of diffusers with timesteps that are spread from the first to the last of all, both among them."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.init_noise_sigma = scheduler, scheduler.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int) -> None:
        last, gaps = NUM_TIMESTEPS - 1, max(1, num_inference_steps - 1)
        timesteps = [round(last * index / gaps) for index in range(num_inference_steps)]
        self.scheduler.set_timesteps(timesteps=timesteps[::-1])

    @property
    def timesteps(self) -> Tensor:
        return self.scheduler.timesteps

    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor:
        return self.scheduler.scale_model_input(sample, timestep)

    def step(self, model_output: Tensor, timestep: float, sample: Tensor, **options: Any) -> Any:
        return self.scheduler.step(model_output, timestep, sample, **options)


def _ddpm_of_dit(config: DiTConfig) -> Scheduler:
    from diffusers import DDPMScheduler

    variance = "learned_range" if config.learn_sigma else "fixed_large"
    return EvenlySpaced(DDPMScheduler(**_DDPM, clip_sample=False, variance_type=variance))


SAMPLERS: dict[str, ImageSampler] = {
    sampler.name: sampler
    for sampler in (
        ImageSampler(name="ddim", schedulers={"ddpm": _ddim}, draws_noise=True),
        ImageSampler(name="dpm-solver++", schedulers={"ddpm": _dpm_solver}),
        ImageSampler(name="ddpm", schedulers={"ddpm": _ddpm}, draws_noise=True, takes_variance=True),
        # As the released code of DiT draws the samples of its paper (arXiv 2212.09748, section 5).
        ImageSampler(
            name="ddpm-dit", schedulers={"ddpm": _ddpm_of_dit}, draws_noise=True, takes_variance=True, guided_channels=3
        ),
    )
}


def samplers_for(parameterization: str) -> list[str]:
    """The names of the samplers that fit a parameterization."""
    return [name for name, sampler in SAMPLERS.items() if parameterization in sampler.schedulers]


def check_sampler_fits(name: str, parameterization: str) -> None:
    """Raises ValueError if a sampler cannot draw from models of a parameterization."""
    fitting = samplers_for(parameterization)
    if name not in fitting:
        raise ValueError(
            f"image sampler {name!r} does not fit models of parameterization {parameterization!r}; "
            f"choose one of {', '.join(fitting)}"
        )


def make_scheduler(name: str, config: DiTConfig) -> Scheduler:
    """A fresh scheduler for a model. Raises ValueError if the sampler does not fit its parameterization."""
    check_sampler_fits(name, config.parameterization)
    return SAMPLERS[name].schedulers[config.parameterization](config)
