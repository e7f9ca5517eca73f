"""Parameterizations: what a network predicts and how images are corrupted, one file each, by name."""

from __future__ import annotations

from fine_core.parameterizations.base import Parameterization
from fine_core.parameterizations.ddpm import DDPM

__all__ = ["PARAMETERIZATIONS", "Parameterization"]

PARAMETERIZATIONS: dict[str, Parameterization] = {parameterization.name: parameterization for parameterization in (DDPM(),)}
