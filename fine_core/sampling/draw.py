"""Sampling with diffusers' schedulers and classifier-free guidance. Seeds do not depend on the batch size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.dit import DiT
from fine_core.randomness import stream_generator
from fine_core.sampling.sampler import SamplerSpec, make_scheduler


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Another model that takes the last `steps` denoising steps (at the data end), with the null label."""

    model: DiT
    steps: int


@torch.no_grad()
def sample_images(
    model: DiT, labels: Tensor, spec: SamplerSpec, *, generator: torch.Generator, tail: Tail | None = None
) -> Tensor:
    """Draw one image for each label (N,); returns (N, C, H, H), about in [-1, 1]. The model's device is used.

    Guidance acts on all channels of the noise (Ho & Salimans, arXiv 2207.12598, equation 6).
    """
    config, device = model.config, labels.device
    scheduler = make_scheduler(spec, config.learn_sigma)
    scheduler.set_timesteps(spec.sampling_steps)
    shape = (len(labels), config.in_channels, config.input_size, config.input_size)
    x = torch.randn(shape, generator=generator, device=device) * scheduler.init_noise_sigma
    null_labels = torch.full_like(labels, config.num_classes)
    extra = {"generator": generator} if spec.sampler in ("ddim", "ddpm") else {}
    first_tail_step = spec.sampling_steps - (0 if tail is None else tail.steps)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        t = torch.full_like(labels, timestep)
        in_tail = step >= first_tail_step
        output = tail.model(x, t, null_labels) if in_tail else model(x, t, labels)
        if spec.guidance_scale > 1 and not in_tail:
            null_output = model(x, t, null_labels)
            eps = null_output + spec.guidance_scale * (output - null_output)
            output = torch.cat([eps[:, : config.in_channels], output[:, config.in_channels :]], dim=1)
        if not (spec.sampler == "ddpm" and config.learn_sigma):
            output = output[:, : config.in_channels]
        x = scheduler.step(output, timestep, x, **extra).prev_sample
    return x


def draw_batch(model: DiT, labels: Tensor, spec: SamplerSpec, *, seed: int, index: int, tail: Tail | None = None) -> Tensor:
    """Samples (N, C, H, H) of batch `index`, drawn from the stream (seed, "sample", index)."""
    generator = stream_generator(seed, "sample", index, device=labels.device)
    return sample_images(model, labels, spec, generator=generator, tail=tail)
