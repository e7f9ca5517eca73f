"""A continuous parameterization and its sampler, registered for a test: x_t = (1 - t) x + t noise, t uniform, velocity."""

from types import SimpleNamespace

import pytest
import torch

from fine_core.parameterizations import PARAMETERIZATIONS, Parameterization
from fine_core.sampling.schedulers import SAMPLERS, ImageSampler


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t[:, None, None, None]


class Velocity(Parameterization):
    name = "toy-velocity"

    def times(self, ranks):
        return ranks.float()

    def corrupt(self, x0, t, noise):
        return (1 - _wide(t)) * x0 + _wide(t) * noise

    def target(self, x0, x_t, t, noise):
        return noise - x0

    def recover(self, prediction, x_t, t):
        return x_t - _wide(t) * prediction

    def signal_to_noise(self, t):
        return ((1 - t) / t).square()

    def network_time(self, t):
        return 1000 * t

    def times_of_scheduler(self, timesteps):
        return timesteps / 1000


class Euler:
    """Steps of equal length from t = 1 to 0. Its timesteps are 1000 t, as those of diffusers' flow schedulers."""

    init_noise_sigma = 1.0

    def set_timesteps(self, num_inference_steps):
        self.length = 1 / num_inference_steps
        self.timesteps = 1000 * torch.arange(num_inference_steps, 0, -1) * self.length

    def scale_model_input(self, sample, timestep):
        return sample

    def step(self, model_output, timestep, sample):
        return SimpleNamespace(prev_sample=sample - self.length * model_output)


def register_velocity(monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of the parameterization; its sampler is "toy-euler"."""
    monkeypatch.setitem(PARAMETERIZATIONS, Velocity.name, Velocity())
    sampler = ImageSampler(name="toy-euler", schedulers={Velocity.name: lambda config: Euler()})
    monkeypatch.setitem(SAMPLERS, sampler.name, sampler)
    return Velocity.name
