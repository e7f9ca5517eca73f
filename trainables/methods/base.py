"""The interface of transfer methods: which parameters move, on which batches, and what is left to serve."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fine_core.data.source import ImageSource
from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.fine.learngene import Learngene
from fine_core.transfer.delta import trainable_tensors
from fine_core.transfer.difffit import DEFAULT_SPAN
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource, DenoisingBatches


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What methods may need besides the model: the share of blocks with DiffFit's scales, the seed of new parameters, and
    the learngene that the base was assembled from (FINE-sigma)."""

    gamma_span: float = DEFAULT_SPAN
    seed: int = 0
    learngene: Learngene | None = None
    width_mode: str = "nested"


@dataclass(frozen=True, kw_only=True)
class TransferData:
    """What batches are made from, on any device, for the run's: images of the target and of the knowledge bank (or None),
    and the base model."""

    target: ImageSource
    bank: ImageSource | None
    base: DiT
    device: torch.device


class TransferMethod(ABC):
    """One way to take a base model to a target domain.

    lr_factor: the method's learning rate over that of full fine-tuning. exact_start: the prepared model computes what the
    base model does. mergeable: `merge` gives a dense DiT of the base's shape.
    """

    name: str
    lr_factor: float = 1.0
    exact_start: bool = True
    mergeable: bool = True
    rehearses: bool = False  # takes a retention schedule
    retains: bool = False  # and rehearses what the base model knows
    uses_bank: bool = False  # from a knowledge bank
    uses_scales: bool = False
    needs_learngene: bool = False
    needs_extra: tuple[str, str] | None = None  # (package, extra of ours that installs it)

    def check_installed(self) -> None:
        """Raises ValueError if the method needs a package that is not installed."""
        if self.needs_extra is not None and find_spec(self.needs_extra[0]) is None:
            package, extra = self.needs_extra
            raise ValueError(f"{self.name} needs {package}: pip install -c constraints.txt -e '.[{extra}]'")

    @abstractmethod
    def prepare(self, model: DiT, options: MethodOptions) -> None:
        """Freeze, add and mark trainable, in place. Deterministic in the options."""

    def count_trained(self, model: DiTConfig, *, gamma_span: float | None, rank: int | None) -> int:
        """Parameters that the method trains in a model, with FINE factors of `rank`."""
        return sum(map(math.prod, self.trained_shapes(model, gamma_span=gamma_span, rank=rank).values()))

    def trained_shapes(self, model: DiTConfig, *, gamma_span: float | None, rank: int | None) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the method trains, by name. Allocates nothing."""
        options = MethodOptions() if gamma_span is None else MethodOptions(gamma_span=gamma_span)
        with torch.device("meta"):
            prepared = DiT(model)
            self.prepare(prepared, options)
        return {name: tuple(tensor.shape) for name, tensor in trainable_tensors(prepared).items()}

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
