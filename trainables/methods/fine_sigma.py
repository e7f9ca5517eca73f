"""FINE-sigma: only sigma moves, along the factors of the learngene that the base model was assembled from."""

from __future__ import annotations

from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.transfer.fine_sigma import apply_fine_sigma, merge_fine_sigma
from trainables.methods.base import Shapes, Start, TransferMethod
from trainables.specs.models import FineSpec, InitializationSpec
from trainables.specs.options import Options


class FineSigma(TransferMethod):
    name = "fine-sigma"
    lr_factor = 10.0
    needs_learngene = True

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        if start.learngene is None:
            raise ValueError("fine-sigma needs the learngene that the base model was assembled from")
        apply_fine_sigma(model, start.learngene, width_mode=start.width_mode)

    def trained_shapes(
        self, model: DiTConfig, options: tuple[Options, ...], initialization: InitializationSpec | None = None
    ) -> Shapes:
        if not isinstance(initialization, FineSpec):
            raise ValueError("fine-sigma needs base models of fine")
        places = [f"blocks.{block}.{place}" for block in range(model.size.depth) for place in BLOCK_MATRICES.values()]
        return {f"{place}.delta_sigma": (initialization.learngene.rank,) for place in places}

    def merge(self, model: DiT) -> DiT:
        return merge_fine_sigma(model)
