"""The batches of a model that is trained to denoise the images of its own dataset."""

from __future__ import annotations

import torch

from fine_core.data.registry import load_dataset
from trainables.specs.inherited import AncestorSpec, InheritedSpec
from trainables.specs.models import BaseModelSpec, LearngeneSpec
from trainables.training.batches import DenoisingBatches


def denoising_batches(
    job: BaseModelSpec | LearngeneSpec | AncestorSpec | InheritedSpec, device: torch.device
) -> DenoisingBatches:
    return DenoisingBatches(
        load_dataset(job.dataset, "train"),
        job.training,
        null_label=job.model.num_classes,
        seed=job.data_seed,
        device=device,
    )
