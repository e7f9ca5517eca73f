"""The model that a finished job serves, loaded from the store."""

from __future__ import annotations

from fine_core.checkpoints.native import load_model
from fine_core.dit import DiT
from fine_core.initializers.fine.factorized import merge
from fine_core.initializers.fine.learngene import Learngene
from trainables.jobs.transfer import load_transferred
from trainables.specs.base import SourceSpec
from trainables.specs.models import BaseModelSpec, DecompositionSpec, LearngeneSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store

Served = BaseModelSpec | SourceSpec | TransferSpec | LearngeneSpec | DecompositionSpec


def load_served(job: Served, store: Store) -> DiT:
    """A dense model, or the prepared one of a transfer that cannot be merged. Raises StoreError or CheckpointError."""
    if isinstance(job, TransferSpec):
        return load_transferred(job, store)
    if isinstance(job, LearngeneSpec | DecompositionSpec):
        return merge(Learngene.load(store.fetch(job, LEARNGENE_FILE)).assemble(job.model.size))
    return load_model(store.fetch(job, MODEL_FILE), expect=job.model)
