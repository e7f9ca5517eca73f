"""Sampling with diffusers' schedulers and classifier-free guidance. Seeds do not depend on the batch size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.denoiser import LABEL, Conditions, denoiser_of, within_memory, without_label
from fine_core.dit import DiT
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.precision import denoiser_in, products_in
from fine_core.randomness import stream_generator
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import SAMPLERS, make_scheduler


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Another model that takes the last `steps` denoising steps (at the data end), with the null label."""

    model: DiT
    steps: int


@torch.no_grad()
def sample_images(
    model: DiT, conditions: Conditions, spec: SamplerSpec, *, generator: torch.Generator, tail: Tail | None = None
) -> Tensor:
    """Draw one image for each row of the conditions (N, ...); returns (N, C, H, H), about in [-1, 1]. Their device is used.

    Guidance acts on all channels of the prediction (Ho & Salimans, arXiv 2207.12598, equation 6), or on those that the sampler
    guides, and on the label alone: other conditions stay. Both of its passes are one of twice the batch. Raises ValueError if
    the sampler does not fit the model's parameterization.
    """
    with products_in(spec.precision):
        return _sample(model, conditions, spec, generator, tail)


def _sample(model: DiT, conditions: Conditions, spec: SamplerSpec, generator: torch.Generator, tail: Tail | None) -> Tensor:
    config, labels = model.config, conditions[LABEL]
    parameterization, sampler = PARAMETERIZATIONS[config.parameterization], SAMPLERS[spec.sampler]
    scheduler = make_scheduler(spec.sampler, config)
    scheduler.set_timesteps(spec.sampling_steps)
    shape = (len(labels), config.in_channels, config.input_size, config.input_size)
    x = torch.randn(shape, generator=generator, device=labels.device) * scheduler.init_noise_sigma
    unlabelled = without_label(conditions, config.num_classes)
    denoise = within_memory(denoiser_in(spec.precision, denoiser_of(model)))
    finish = within_memory(denoiser_in(spec.precision, denoiser_of(model if tail is None else tail.model)))
    is_guided = spec.guidance_scale > 1 and not bool((labels == config.num_classes).all())
    both = {name: torch.cat([condition, unlabelled[name]]) for name, condition in conditions.items()} if is_guided else {}
    num_guided = min(config.in_channels, sampler.guided_channels or config.in_channels)
    taken_channels = config.out_channels if sampler.takes_variance else config.in_channels
    extra = {"generator": generator} if sampler.draws_noise else {}
    first_tail_step = spec.sampling_steps - (0 if tail is None else tail.steps)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        seen = scheduler.scale_model_input(x, timestep)
        t = torch.full((len(labels),), timestep, dtype=torch.float32, device=labels.device)
        time = parameterization.network_time(parameterization.times_of_scheduler(t))
        if step >= first_tail_step:
            output = finish(seen, time, unlabelled)
        elif is_guided:
            output, null_output = denoise(torch.cat([seen, seen]), torch.cat([time, time]), both).chunk(2)
            guided = null_output + spec.guidance_scale * (output - null_output)
            output = torch.cat([guided[:, :num_guided], output[:, num_guided:]], dim=1)
        else:
            output = denoise(seen, time, conditions)
        x = scheduler.step(output[:, :taken_channels], timestep, x, **extra).prev_sample
    return x


def draw_batch(
    model: DiT, conditions: Conditions, spec: SamplerSpec, *, seed: int, index: int, tail: Tail | None = None
) -> Tensor:
    """Samples (N, C, H, H) of batch `index`, drawn from the stream (seed, "sample", index)."""
    generator = stream_generator(seed, "sample", index, device=conditions[LABEL].device)
    return sample_images(model, conditions, spec, generator=generator, tail=tail)
