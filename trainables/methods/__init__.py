"""Ways to take a base model to a target domain: one registry behind the command line and the Python API."""

from __future__ import annotations

from typing import Any

from fine_core.dit import DiT
from fine_core.parameterizations.loss_weights import min_snr_weights, p2_weights
from trainables.methods.adapters import AdapterTuning
from trainables.methods.base import Start, TransferData, TransferMethod
from trainables.methods.bitfit import BitFit
from trainables.methods.diff_tuning import DiffTuning
from trainables.methods.difffit import DiffFit
from trainables.methods.fine_sigma import FineSigma
from trainables.methods.full import FullFineTuning, Scratch
from trainables.methods.lora import LoRA
from trainables.methods.prompts import VPTDeep
from trainables.methods.weighted import WeightedFineTuning
from trainables.specs.options import Options, from_values

__all__ = [
    "TRANSFER_ALIASES",
    "TRANSFER_METHODS",
    "Start",
    "TransferData",
    "TransferMethod",
    "apply_transfer",
    "transfer_method",
]

TRANSFER_METHODS: dict[str, TransferMethod] = {
    method.name: method
    for method in (
        FullFineTuning(),
        Scratch(),
        FineSigma(),
        DiffFit(),
        DiffTuning("diff-tuning", FullFineTuning()),
        DiffTuning("diff-tuning-psi", FullFineTuning(), retains=False),
        DiffTuning("diff-tuning-xi", FullFineTuning(), reconsolidates=False),
        DiffTuning("diff-tuning-kd", FullFineTuning(), distils=True),
        DiffTuning("diff-tuning+difffit", DiffFit()),
        BitFit(),
        LoRA(),
        AdapterTuning("adapter-parallel", parallel=True),
        AdapterTuning("adapter-sequential", parallel=False),
        VPTDeep(),
        WeightedFineTuning("p2", p2_weights),
        WeightedFineTuning("min-snr", min_snr_weights),
    )
}


# name -> (method, options that it stands for)
TRANSFER_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora-r8": ("lora", {"lora.rank": 8, "lora.targets": "qkv"}),
    "lora-r16": ("lora", {"lora.rank": 16, "lora.targets": "qkv"}),
    "lora-all-r8": ("lora", {"lora.rank": 8, "lora.targets": "all"}),
}


def resolve(name: str) -> tuple[TransferMethod, dict[str, Any]]:
    """A method and the options that its name stands for. Raises ValueError for an unknown name."""
    method, values = TRANSFER_ALIASES.get(name, (name, {}))
    if method not in TRANSFER_METHODS:
        choices = ", ".join((*TRANSFER_METHODS, *TRANSFER_ALIASES))
        raise ValueError(f"unknown transfer {name!r}; choose from {choices}")
    return TRANSFER_METHODS[method], values


def transfer_method(name: str) -> TransferMethod:
    """Raises ValueError for an unknown method."""
    return resolve(name)[0]


def apply_transfer(name: str, model: DiT, *options: Options, start: Start | None = None) -> DiT:
    """Prepare a model for a method, in place: frozen, added to, trainable parameters marked. Returns the model.

    Options of classes that are not given have their defaults. Raises ValueError for an unknown method, or where the method
    needs something in `start` that is missing.
    """
    method, values = resolve(name)
    given = {type(one): one for one in options}
    chosen = tuple(given.get(kind) or from_values(kind, values) for kind in method.options)
    method.prepare(model, chosen, start or Start())
    return model
