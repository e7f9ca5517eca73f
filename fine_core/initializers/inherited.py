"""The interface of initializations that inherit from a pre-trained model: what is kept of it, and how a size starts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.checkpoints.native import config_of_file, config_to_json, load_tensors, save_tensors
from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.rebuilt import RebuiltDiT

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What is kept of a model to start others of any size. `config`: that of the model it is of."""

    config: DiTConfig
    tensors: Tensors

    def save(self, path: str | os.PathLike) -> None:
        save_tensors(path, self.tensors, kind="inherited", config=config_to_json(self.config))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Inherited:
        """Raises CheckpointError if the file is damaged, of another kind or of another version."""
        tensors, config = load_tensors(path, kind="inherited")
        return cls(config=config_of_file(path, config), tensors=tensors)


class Inheritance(ABC):
    """One way to keep what a pre-trained model (the ancestor) knows, and to start models of other sizes from it.

    Its options are its fields: implementations are frozen keyword-only dataclasses.
    """

    @abstractmethod
    def keep(self, ancestor: DiT) -> Tensors:
        """What is kept of a dense model; the best fit where the method has a form of its own. Works on the meta device."""

    def start(self, inherited: Inherited, target: DiTConfig, *, seed: int) -> DiT | RebuiltDiT:
        """The model of a size at its start; `seed` draws what is not inherited.

        A RebuiltDiT has only its coefficients trainable, and they are trained before it is merged. Raises ValueError for a
        size that `refusal` refuses.
        """
        if reason := self.refusal(inherited.config.size, target.size):
            raise ValueError(reason)
        return self._start(inherited, target, seed)

    @abstractmethod
    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> DiT | RebuiltDiT:
        """The same for a size that can be made."""

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        """Why a size cannot be made from a source, and which can; None if it can."""
        return None

    def misfit(self, source: ModelSize) -> str | None:
        """Why the options do not fit a source of this size, and what would; None if they do."""
        return None


class ConstrainedInheritance(Inheritance):
    """One whose ancestor may be trained in the method's own form, instead of being fitted afterwards."""

    @abstractmethod
    def constrained(self, source: DiTConfig, *, seed: int) -> RebuiltDiT:
        """A model of the source's size with everything trainable, to be trained from scratch."""

    @abstractmethod
    def keep_of(self, trained: RebuiltDiT) -> Tensors:
        """What is kept of the trained model."""


def fresh_model(config: DiTConfig, seed: int) -> DiT:
    """A model with DiT's own initialization, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiT(config)


def other_width(source: ModelSize, target: ModelSize) -> str | None:
    """The refusal of a method that makes no width but its source's."""
    return None if target.width == source.width else f"it makes no width but the source's, {source.width}"


def other_head_size(source: ModelSize, target: ModelSize) -> str | None:
    """The refusal of a method that leaves heads as large as they are."""
    if target.head_dim == source.head_dim:
        return None
    return f"it makes no heads of {target.head_dim} channels, only of the source's {source.head_dim}"
