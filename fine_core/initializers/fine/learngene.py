"""The learngene: tensors that models of all sizes share, stored once, and the assembly of a model of any size.

FINE, arXiv 2409.19289, sections 3.2 and 3.3 (unofficial implementation); widths are our extension (see width.py).
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError, config_of_file, config_to_json, load_tensors, save_tensors
from fine_core.dit import DiTConfig, ModelSize
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.initializers.fine.widened import WidenedDiT
from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.initializers.rebuilt import merge
from fine_core.initializers.width import WIDTH_AXES, check_narrower, prefix_rows, ranked_rows, select_rows

__all__ = ["SIGMA_INITS", "WIDTH_MODES", "Learngene", "merge"]

SIGMA_INITS = ("random", "identical", "linear")
WIDTH_MODES = ("nested", "slice")


def interpolate_depth(sigma: Tensor, depth: int) -> Tensor:
    """Interpolate sigma (L, R) to (depth, R), linear in normalised depth. The end layers match; depth 1 is the middle."""
    source_depth = len(sigma)
    middle = torch.tensor([(source_depth - 1) / 2])
    position = torch.linspace(0, source_depth - 1, depth) if depth > 1 else middle
    below = position.floor().long()
    above = (below + 1).clamp(max=source_depth - 1)
    return torch.lerp(sigma[below], sigma[above], (position - below)[:, None])


class Learngene:
    """Shared tensors (factors, biases, embedders, final layer), and the pre-trained sigma of every trained width."""

    def __init__(self, config: DiTConfig, rank: int, shared: dict[str, Tensor], sigma: dict[int, dict[str, Tensor]]) -> None:
        self.config, self.rank, self.shared, self.sigma = config, rank, shared, sigma

    @classmethod
    def from_model(cls, model: FactorizedDiT) -> Learngene:
        """Extract the learngene from a pre-trained factorized model; its factors get unit columns."""
        model.normalize_factors()
        shared = {name: tensor.detach().cpu().clone() for name, tensor in model.shared_tensors().items()}
        sigma = {w: {m: model.sigma[str(w)][m].detach().cpu().clone() for m in BLOCK_MATRICES} for w in model.widths}
        return cls(model.config, model.rank, shared, sigma)

    @property
    def num_parameters(self) -> int:
        """Parameters that a target of the learngene's own width inherits (sigma excluded)."""
        return sum(tensor.numel() for tensor in self.shared.values())

    def save(self, path: str | os.PathLike) -> None:
        tensors = dict(self.shared)
        for width, by_matrix in self.sigma.items():
            tensors |= {f"sigma.{width}.{m}": value for m, value in by_matrix.items()}
        config = {"model": config_to_json(self.config), "rank": self.rank, "widths": sorted(self.sigma)}
        save_tensors(path, tensors, kind="learngene", config=config)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Learngene:
        """Raises CheckpointError if the file is damaged, of another kind or of another version."""
        tensors, config = load_tensors(path, kind="learngene")
        try:
            sigma = {w: {m: tensors[f"sigma.{w}.{m}"] for m in BLOCK_MATRICES} for w in config["widths"]}
            rank, model = config["rank"], config["model"]
        except KeyError as error:
            raise CheckpointError(f"{path} is a learngene of another version of this project: it has no {error}") from error
        shared = {name: tensor for name, tensor in tensors.items() if not name.startswith("sigma.")}
        return cls(config_of_file(path, model), rank, shared, sigma)

    def factorized(self) -> FactorizedDiT:
        """The factorized model it came from, with unit columns, for further training: all widths, everything trainable."""
        own = self.config.size.width
        model = FactorizedDiT(self.config, rank=self.rank, nested_widths=tuple(w for w in self.sigma if w != own))
        with torch.no_grad():
            for name, target in model.shared_tensors().items():
                target.copy_(self.shared[name])
            for width, by_matrix in self.sigma.items():
                for matrix, value in by_matrix.items():
                    model.sigma[str(width)][matrix].copy_(value)
        return model

    def assemble(
        self, size: ModelSize, *, sigma_init: str = "linear", width_mode: str = "nested", seed: int = 0
    ) -> FactorizedDiT | WidenedDiT:
        """A model of `size` whose shared parts come from the learngene, with only sigma trainable.

        sigma_init: `random` (drawn from `seed`), `identical` (mean over the source's layers) or `linear` (interpolated
        in normalised depth). width_mode: `nested` takes the first rows, `slice` those of largest norm. A model that is wider
        than the learngene has copies of rows, and maps of them that are trainable too.
        Raises ValueError for an unknown mode or heads of another size.
        """
        if sigma_init not in SIGMA_INITS:
            raise ValueError(f"unknown sigma_init {sigma_init!r}; choose one of {', '.join(SIGMA_INITS)}")
        if width_mode not in WIDTH_MODES:
            raise ValueError(f"unknown width_mode {width_mode!r}; choose one of {', '.join(WIDTH_MODES)}")
        if size.width > self.config.size.width:
            return self._widened(size, sigma_init, seed)
        return self._narrowed(size, sigma_init, width_mode, seed)

    def _fresh(self, size: ModelSize, seed: int) -> FactorizedDiT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FactorizedDiT(replace(self.config, size=size), rank=self.rank)

    def _narrowed(self, size: ModelSize, sigma_init: str, width_mode: str, seed: int) -> FactorizedDiT:
        source = self.config.size
        check_narrower(source, size)
        model = self._fresh(size, seed)
        rows = prefix_rows(source, size) if width_mode == "nested" else ranked_rows(source, size, self.shared)
        with torch.no_grad():
            for name, target in model.shared_tensors().items():
                target.copy_(select_rows(self.shared[name], WIDTH_AXES[name], rows))
            for m, target in model.sigma[str(size.width)].items():
                if sigma_init == "random":
                    target *= source.width / size.width  # fewer rows make shorter columns, as in pre-training
                else:
                    target.copy_(self._sigma_for(size, m, sigma_init, width_mode))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in model.sigma.parameters():
            parameter.requires_grad_(True)
        return model

    def _widened(self, size: ModelSize, sigma_init: str, seed: int) -> WidenedDiT:
        """What reads copied channels is divided by their number, so that sigma stays as it is."""
        own = self.config.size.width
        if sigma_init == "random":
            at_own_width = ModelSize(depth=size.depth, width=own, num_heads=self.config.size.num_heads)
            sigma = {m: value.detach() for m, value in self._fresh(at_own_width, seed).sigma[str(own)].items()}
        else:
            sigma = {m: self._at_depth(self.sigma[own][m], size.depth, sigma_init) for m in BLOCK_MATRICES}
        return WidenedDiT(replace(self.config, size=size), self.config.size, self.shared, sigma)

    @staticmethod
    def _at_depth(sigma: Tensor, depth: int, sigma_init: str) -> Tensor:
        if sigma_init == "identical":
            return sigma.mean(dim=0, keepdim=True).expand(depth, -1)
        return interpolate_depth(sigma, depth)

    def _sigma_for(self, size: ModelSize, matrix: str, sigma_init: str, width_mode: str) -> Tensor:
        # A width that was not trained takes sigma from the next wider one. Fewer rows need a larger sigma.
        candidates = self.sigma if width_mode == "nested" else [self.config.size.width]
        trained_width = min(w for w in candidates if w >= size.width)
        sigma = self.sigma[trained_width][matrix] * (trained_width / size.width) ** 0.5
        return self._at_depth(sigma, size.depth, sigma_init)
