"""Retention xi(t) and reconsolidation psi(t) of Diff-Tuning, as sampling probabilities of timesteps or as loss weights.

Zhong et al., "Diffusion Tuning: Transferring Diffusion Models via Chain of Forgetting", arXiv 2406.00773, section 3.
psi grows and xi falls from the data side (t = 0) to the noise side. The power family at T steps is that of the authors'
released code: p_target(i) ~ (i+1)^s and p_source(i) ~ (T-i)^s. Shapes: T number of timesteps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.parameterizations.ddpm import NUM_TIMESTEPS

# family -> name of its parameter, or None
FAMILIES = {
    "linear": None,
    "power": "exponent s, 0 or more",
    "complement": "exponent tau, more than 0",
    "cosine": None,
    "constant": None,
    "cutoff": f"first timestep that adapts, 1 to {NUM_TIMESTEPS - 1}",
}


@dataclass(frozen=True, kw_only=True)
class RetentionSchedule:
    """One schedule: a family and its parameter (None where the family has none).

    linear is power with s = 1; complement is xi = 1 - (t/T)^tau beside psi = ((t+1)/T)^tau; cosine is sin^2 and cos^2;
    constant adapts and retains equally at all timesteps; cutoff adapts from a timestep on and retains below it.
    """

    family: str
    parameter: float | None = None

    @classmethod
    def parse(cls, text: str) -> RetentionSchedule:
        """Read `linear`, `power:0.5`, `complement:0.7`, `cosine`, `constant` or `cutoff:300`. Raises ValueError for others."""
        family, _, value = text.strip().partition(":")
        if family not in FAMILIES:
            names = ", ".join(name + (":NUMBER" if takes else "") for name, takes in FAMILIES.items())
            raise ValueError(f"unknown schedule {text!r}; choose one of {names}")
        if FAMILIES[family] is None:
            if value:
                raise ValueError(f"schedule {family!r} takes no number, got {text!r}")
            return cls(family=family)
        try:
            parameter = float(value)
        except ValueError:
            example = f"{family}:{300 if family == 'cutoff' else 0.5}"
            raise ValueError(f"schedule {text!r} needs a number, such as {example}") from None
        return cls(family=family, parameter=parameter)

    def __post_init__(self) -> None:
        parameter = self.parameter
        valid = {
            "power": parameter is not None and 0 <= parameter < math.inf,
            "complement": parameter is not None and 0 < parameter < math.inf,
            "cutoff": parameter in range(1, NUM_TIMESTEPS),
        }
        if not valid.get(self.family, self.family in FAMILIES and parameter is None):
            raise ValueError(f"schedule '{self}' is out of range: {self.family} takes {FAMILIES.get(self.family)}")

    def __str__(self) -> str:
        return self.family if self.parameter is None else f"{self.family}:{self.parameter:.12g}"

    def psi(self, num_timesteps: int = NUM_TIMESTEPS) -> Tensor:
        """Reconsolidation psi (T,), float64, in [0, 1]."""
        u = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        match self.family:
            case "linear":
                return u
            case "power" | "complement":
                return u**self.parameter
            case "cosine":
                return (u * math.pi / 2).sin().square()
            case "constant":
                return torch.ones_like(u)
        return (torch.arange(num_timesteps) >= self.parameter * num_timesteps / NUM_TIMESTEPS).double()

    def xi(self, num_timesteps: int = NUM_TIMESTEPS) -> Tensor:
        """Retention xi (T,), float64, in [0, 1]."""
        if self.family == "complement":
            u = torch.arange(num_timesteps, dtype=torch.float64) / num_timesteps
            return 1 - u**self.parameter
        if self.family == "cutoff":
            return 1 - self.psi(num_timesteps)
        return self.psi(num_timesteps).flip(0)

    def target_probabilities(self, num_timesteps: int = NUM_TIMESTEPS) -> Tensor:
        """Probabilities (T,) of timesteps for target images."""
        psi = self.psi(num_timesteps)
        return psi / psi.sum()

    def source_probabilities(self, num_timesteps: int = NUM_TIMESTEPS) -> Tensor:
        """Probabilities (T,) of timesteps for images of the knowledge bank."""
        xi = self.xi(num_timesteps)
        return xi / xi.sum()
