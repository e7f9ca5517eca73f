"""BitFit: biases and the label table are trained (Zaken et al., arXiv 2106.10199)."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.delta import train_only
from fine_core.transfer.lora import LABEL_TABLE


def apply_bitfit(model: DiT) -> None:
    """Ben Zaken et al., "BitFit", arXiv 2106.10199: biases (and the label table)."""
    train_only(model, lambda name: name.endswith("bias") or name.startswith(LABEL_TABLE))
