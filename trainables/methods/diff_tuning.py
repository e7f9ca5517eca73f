"""Diff-Tuning and its arms: reconsolidation psi on the target, retention xi on the knowledge bank, over any parameters.

arXiv 2406.00773, section 3, and the authors' released code.
"""

from __future__ import annotations

import copy

import torch

from fine_core.dit import DiT
from fine_core.parameterizations.ranks import NUM_LEVELS
from trainables.methods.base import MethodOptions, TransferData, TransferMethod
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource, RehearsingBatches, uniform_probabilities


class DiffTuning(TransferMethod):
    """Which halves of the method act: psi (`reconsolidates`) and xi (`retains`).

    `distils`: instead of bank images, target images under the null label follow the frozen base model (the KD arm; the
    paper leaves its data, label and weight open: these are ours).
    """

    rehearses = True

    def __init__(
        self, name: str, parameters: TransferMethod, *, reconsolidates: bool = True, retains: bool = True, distils: bool = False
    ) -> None:
        self.name, self.parameters = name, parameters
        self.reconsolidates, self.retains, self.distils = reconsolidates, retains, distils
        self.uses_bank = retains and not distils
        self.lr_factor, self.uses_scales = parameters.lr_factor, parameters.uses_scales

    def prepare(self, model: DiT, options: MethodOptions) -> None:
        self.parameters.prepare(model, options)

    def merge(self, model: DiT) -> DiT:
        return self.parameters.merge(model)

    def batches(self, transfer: TransferSpec, data: TransferData) -> BatchSource:
        spec, size = transfer.rehearsal, transfer.training.batch_size
        schedule, sampled = spec.schedule, spec.weighting == "sampling"
        uniform, ones = uniform_probabilities(), torch.ones(NUM_LEVELS)
        retained = spec.rehearsed_per_batch(size) if self.retains and spec.source_ratio is not None else 0
        adapts = {"probabilities": uniform, "weights": ones}
        if self.reconsolidates:
            adapts = {
                "probabilities": schedule.target_probabilities() if sampled else uniform,
                "weights": ones if sampled else schedule.psi(),
            }
        target = self.target_batches(transfer, data, batch_size=size - retained, **adapts)
        if not retained:
            return target
        return RehearsingBatches(
            target=target,
            rehearsed=data.target if self.distils else data.bank,
            rehearsed_per_batch=retained,
            probabilities=schedule.source_probabilities() if sampled else uniform,
            weights=ones if sampled else schedule.xi(),
            retention_weight=spec.retention_weight,
            teacher=copy.deepcopy(data.base).to(data.device) if self.distils else None,
        )
