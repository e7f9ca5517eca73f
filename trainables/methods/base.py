"""The interface of transfer methods: which parameters move, on which batches, and what is left to serve."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch

from fine_core.data.source import ImageSource
from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.fine.learngene import Learngene
from fine_core.transfer.delta import trainable_tensors
from trainables.specs.models import InitializationSpec
from trainables.specs.options import Options
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource, DenoisingBatches

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a method starts from besides the model and its options: the seed of new parameters, and the learngene that the
    base was assembled from, for methods that move along its factors."""

    seed: int = 0
    learngene: Learngene | None = None
    width_mode: str = "nested"


@dataclass(frozen=True, kw_only=True)
class TransferData:
    """Inputs of a transfer's batches, on any device: images of the target and of the knowledge bank (or None), and the base
    model. `device`: the run's device, where the batches go."""

    target: ImageSource
    bank: ImageSource | None
    base: DiT
    device: torch.device


class TransferMethod(ABC):
    """One way to take a base model to a target domain.

    lr_factor: the method's learning rate over that of full fine-tuning. options: the classes of its own options.
    exact_start: the prepared model computes what the base model does. mergeable: `merge` gives a dense DiT of the base's
    shape.
    """

    name: str
    lr_factor: float = 1.0
    options: tuple[type[Options], ...] = ()
    exact_start: bool = True
    mergeable: bool = True
    needs_learngene: bool = False
    needs_extra: tuple[str, str] | None = None  # (package, extra of ours that installs it)

    def check_installed(self) -> None:
        """Raises ValueError if the method needs a package that is not installed."""
        if self.needs_extra is not None and find_spec(self.needs_extra[0]) is None:
            package, extra = self.needs_extra
            raise ValueError(f"{self.name} needs {package}: pip install -c constraints.txt -e '.[{extra}]'")

    def default_options(self) -> tuple[Options, ...]:
        return tuple(kind() for kind in self.options)

    def uses_bank(self, options: tuple[Options, ...]) -> bool:
        """Whether it rehearses images of a knowledge bank."""
        return False

    def known_good(self, options: tuple[Options, ...]) -> list[tuple[Options, ...]]:
        """Options that a search tries first: these, and others that are known from papers."""
        return [options]

    @abstractmethod
    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        """Freeze, add and mark trainable, in place. Deterministic in its arguments."""

    def count_trained(
        self, model: DiTConfig, options: tuple[Options, ...], initialization: InitializationSpec | None = None
    ) -> int:
        """Parameters that the method trains in a model."""
        return sum(map(math.prod, self.trained_shapes(model, options, initialization).values()))

    def trained_shapes(
        self, model: DiTConfig, options: tuple[Options, ...], initialization: InitializationSpec | None = None
    ) -> Shapes:
        """Shapes of the tensors that the method trains in a base model, by name. Allocates nothing."""
        return _prepared_shapes(self, model, options)

    def merge(self, model: DiT) -> DiT:
        """The model to serve: dense if `mergeable`, else the prepared model itself."""
        return model

    def batches(self, transfer: TransferSpec, data: TransferData) -> BatchSource:
        """The batches of the transfer's steps: by default the target's images at uniform timesteps."""
        return self.target_batches(transfer, data)

    @staticmethod
    def target_batches(transfer: TransferSpec, data: TransferData, **changes) -> DenoisingBatches:
        return DenoisingBatches(
            data.target,
            transfer.training,
            null_label=transfer.model.num_classes,
            seed=transfer.data_seed,
            device=data.device,
            **changes,
        )


@lru_cache(maxsize=1024)
def _prepared_shapes(method: TransferMethod, model: DiTConfig, options: tuple[Options, ...]) -> Shapes:
    with torch.device("meta"):
        prepared = DiT(model)
        method.prepare(prepared, options, Start())
    return {name: tuple(tensor.shape) for name, tensor in trainable_tensors(prepared).items()}
