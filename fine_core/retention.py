"""Retention xi and reconsolidation psi of Diff-Tuning over noise levels, as sampling probabilities or as loss weights.

Zhong et al., "Diffusion Tuning: Transferring Diffusion Models via Chain of Forgetting", arXiv 2406.00773, section 3.
psi grows and xi falls from the data side to the noise side. They are tables over T levels of rank (see
`fine_core.parameterizations.ranks`), which are DDPM's timesteps. The power family is that of the authors' released code:
p_target(i) ~ (i+1)^s and p_source(i) ~ (T-i)^s. Shapes: T number of levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.parameterizations.ranks import NUM_LEVELS

# family -> name of its parameter, or None
FAMILIES = {
    "linear": None,
    "power": "exponent s, 0 or more",
    "complement": "exponent tau, more than 0",
    "cosine": None,
    "constant": None,
    "cutoff": f"first level that adapts, 1 to {NUM_LEVELS - 1}",
}


@dataclass(frozen=True, kw_only=True)
class RetentionSchedule:
    """One schedule: a family and its parameter (None where the family has none).

    linear is power with s = 1; complement is xi = 1 - (t/T)^tau beside psi = ((t+1)/T)^tau; cosine is sin^2 and cos^2;
    constant adapts and retains equally at all levels; cutoff adapts from a level on and retains below it.
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
            "cutoff": parameter in range(1, NUM_LEVELS),
        }
        if not valid.get(self.family, self.family in FAMILIES and parameter is None):
            raise ValueError(f"schedule '{self}' is out of range: {self.family} takes {FAMILIES.get(self.family)}")

    def __str__(self) -> str:
        return self.family if self.parameter is None else f"{self.family}:{self.parameter:.12g}"

    def psi(self, num_levels: int = NUM_LEVELS) -> Tensor:
        """Reconsolidation psi (T,), float64, in [0, 1]."""
        u = torch.arange(1, num_levels + 1, dtype=torch.float64) / num_levels
        match self.family:
            case "linear":
                return u
            case "power" | "complement":
                return u**self.parameter
            case "cosine":
                return (u * math.pi / 2).sin().square()
            case "constant":
                return torch.ones_like(u)
        return (torch.arange(num_levels) >= self.parameter * num_levels / NUM_LEVELS).double()

    def xi(self, num_levels: int = NUM_LEVELS) -> Tensor:
        """Retention xi (T,), float64, in [0, 1]."""
        if self.family == "complement":
            u = torch.arange(num_levels, dtype=torch.float64) / num_levels
            return 1 - u**self.parameter
        if self.family == "cutoff":
            return 1 - self.psi(num_levels)
        return self.psi(num_levels).flip(0)

    def target_probabilities(self, num_levels: int = NUM_LEVELS) -> Tensor:
        """Probabilities (T,) of levels for target images."""
        psi = self.psi(num_levels)
        return psi / psi.sum()

    def source_probabilities(self, num_levels: int = NUM_LEVELS) -> Tensor:
        """Probabilities (T,) of levels for images of the knowledge bank."""
        xi = self.xi(num_levels)
        return xi / xi.sum()
