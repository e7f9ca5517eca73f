"""Ways to take a base model to a target domain: one registry behind the command line and the Python API."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.parameterizations.loss_weights import min_snr_weights, p2_weights
from trainables.methods.adapters import AdapterTuning
from trainables.methods.base import MethodOptions, TransferData, TransferMethod
from trainables.methods.bitfit import BitFit
from trainables.methods.diff_tuning import DiffTuning
from trainables.methods.difffit import DiffFit
from trainables.methods.fine_sigma import FineSigma
from trainables.methods.full import FullFineTuning, Scratch
from trainables.methods.lora import LoRA
from trainables.methods.prompts import VPTDeep
from trainables.methods.weighted import WeightedFineTuning

__all__ = ["TRANSFER_METHODS", "MethodOptions", "TransferData", "TransferMethod", "apply_transfer", "transfer_method"]

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
        LoRA("lora-r8", rank=8, targets="qkv"),
        LoRA("lora-r16", rank=16, targets="qkv"),
        LoRA("lora-all-r8", rank=8, targets="all"),
        AdapterTuning("adapter-parallel", parallel=True),
        AdapterTuning("adapter-sequential", parallel=False),
        VPTDeep(),
        WeightedFineTuning("p2", p2_weights),
        WeightedFineTuning("min-snr", min_snr_weights),
    )
}


def transfer_method(name: str) -> TransferMethod:
    """Raises ValueError for an unknown method."""
    if name not in TRANSFER_METHODS:
        raise ValueError(f"unknown transfer {name!r}; choose from {', '.join(TRANSFER_METHODS)}")
    return TRANSFER_METHODS[name]


def apply_transfer(name: str, model: DiT, options: MethodOptions | None = None) -> DiT:
    """Prepare a model for a method, in place: frozen, added to, trainable parameters marked. Returns the model.

    Raises ValueError for an unknown method, or where the method needs an option that is missing.
    """
    transfer_method(name).prepare(model, options or MethodOptions())
    return model
