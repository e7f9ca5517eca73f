"""The interface of parameterizations."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Parameterization(ABC):
    """What a network is trained to predict, and how images are corrupted for it. Objects hold no state.

    A noise level has a rank (see `ranks`) and a time t in units of the parameterization's own; t grows with the rank.
    Shapes: images, noise and predictions (N, C, H, H); the network's output (N, `out_channels`, H, H); ranks and times (N,).
    """

    name: str

    @abstractmethod
    def times(self, ranks: Tensor) -> Tensor:
        """The times of ranks in (0, 1)."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noisy images x_t of x0 for the given noise, which is standard normal."""

    @abstractmethod
    def target(self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the first C channels of the network's output should be."""

    @abstractmethod
    def recover(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The images x0 that a prediction of the target stands for."""

    @abstractmethod
    def signal_to_noise(self, t: Tensor) -> Tensor:
        """Variance of the signal over that of the noise in x_t (N,)."""

    def losses(
        self, output: Tensor, *, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weights: Tensor | float = 1.0
    ) -> Tensor:
        """Loss of each sample (N,): the mean squared distance to the target, times the weights (N,) of its noise level."""
        prediction = output[:, : x0.shape[1]]
        return weights * (prediction - self.target(x0, x_t, t, noise)).square().mean(dim=(1, 2, 3))

    def out_channels(self, in_channels: int, *, learn_sigma: bool) -> int:
        """Channels of the network's output."""
        return in_channels

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network sees of x_t. In sampling the scheduler scales it."""
        return x_t

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t."""
        return t

    def times_of_scheduler(self, timesteps: Tensor) -> Tensor:
        """The times that diffusers' schedulers mean by their timesteps."""
        return timesteps
