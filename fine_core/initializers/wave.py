"""WAVE: templates shared by all layers, and scalers of every layer, W_l = sum_t S_(l,t) (x) T_t (Kronecker product).

Feng et al., "WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models", arXiv 2406.17503, equation 4.
The scaler is the left factor: a block of W is a mixture of whole templates, so heads stay together. The paper has ViT. Ours for
DiT: number and size of templates (as many bytes as FINE's factors at rank = width), square templates, one set of biases shared
by the layers as in FINE, training by the denoising loss without a teacher, the fit to a given model, and what other sizes take
of the scalers.
Shapes: L depth, N templates, w their rows and columns, (a, b) blocks in the rows and columns of W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.fine.learngene import interpolate_depth
from fine_core.initializers.inherited import ConstrainedInheritance, Inherited, Tensors, fresh_model, other_head_size
from fine_core.initializers.matrices import BLOCK_MATRICES, POSITIONS, matrix_shape, outer_tensors
from fine_core.initializers.rebuilt import RebuiltDiT
from fine_core.initializers.width import WIDTH_AXES, RowChoice, dense_axes, prefix_rows, select_rows

TEMPLATE, SCALER, BIAS = "template.", "scaler.", "bias."
SCALER_INITS = ("linear", "random")


def assembled(scaler: Tensor, template: Tensor) -> Tensor:
    """W (L, a w, b w) of scalers (L, N, a, b) and templates (N, w, w)."""
    blocks = torch.tensordot(scaler, template, dims=([1], [0]))  # (L, a, b, w, w)
    return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def rearranged(weights: Tensor, width: int) -> Tensor:
    """The blocks of W (L, a w, b w) as rows (L a b, w w): a sum of N Kronecker products becomes a matrix of rank N
    (Van Loan and Pitsianis, "Approximation with Kronecker Products", 1993)."""
    blocks = weights.unflatten(2, (-1, width)).unflatten(1, (-1, width))  # (L, a, w, b, w)
    return blocks.transpose(2, 3).flatten(3, 4).flatten(0, 2)


class WaveDiT(RebuiltDiT):
    """Scalers (L, N, a, b), templates (N, w, w) and biases of every matrix type, and the tensors outside the blocks.

    Everything is trainable, or the scalers alone (`only_scalers`).
    """

    def __init__(self, config: DiTConfig, tensors: Tensors, *, only_scalers: bool) -> None:
        super().__init__(config)
        self.scalers = nn.ParameterDict({m: nn.Parameter(tensors[SCALER + m]) for m in BLOCK_MATRICES})
        shared = {name.replace(".", "/"): tensor for name, tensor in tensors.items() if not name.startswith(SCALER)}
        self.shared = nn.ParameterDict({n: nn.Parameter(t, requires_grad=not only_scalers) for n, t in shared.items()})

    def tensors(self) -> Tensors:
        """All of them, by the names under which they are kept."""
        shared = {name.replace("/", "."): tensor for name, tensor in self.shared.items()}
        return shared | {SCALER + m: scaler for m, scaler in self.scalers.items()}

    def dense_state(self, width: int | None = None) -> Tensors:
        held = self.tensors()
        state = {n: t for n, t in held.items() if not n.startswith((TEMPLATE, SCALER, BIAS))} | {POSITIONS: self.positions()}
        for m, place in BLOCK_MATRICES.items():
            with torch.autocast(held[SCALER + m].device.type, enabled=False):  # fp32 in any precision
                weights = assembled(held[SCALER + m], held[TEMPLATE + m])  # (L, out, in)
            for layer, weight in enumerate(weights):
                state |= {f"blocks.{layer}.{place}.weight": weight, f"blocks.{layer}.{place}.bias": held[BIAS + m]}
        return state


@dataclass(frozen=True, kw_only=True)
class Wave(ConstrainedInheritance):
    """Keeps templates, biases, outer tensors and the source's scalers; a size starts with scalers of its own to train.

    `template_ratio`: number of templates divided by that which takes as many bytes as FINE's factors at rank = width.
    `template_width`: their rows and columns, 0 for the source's width; they make the multiples of it up to the source's width.
    The numbers in scalers grow with (width / template_width)^4: at DiT-B and 64 they are more than those in templates.
    `scaler_init` "linear": interpolated in normalised depth; "random": drawn, those of adaLN 0.
    Raises ValueError for values that fit no source.
    """

    template_ratio: float = 1.0
    template_width: int = 0
    scaler_init: str = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.template_ratio < math.inf:
            raise ValueError(f"template_ratio is {self.template_ratio}; it must be positive and finite")
        if self.template_width < 0:
            raise ValueError(f"template_width is {self.template_width}; it must be 0 or more")
        if self.scaler_init not in SCALER_INITS:
            raise ValueError(f"unknown scaler_init {self.scaler_init!r}; choose one of {', '.join(SCALER_INITS)}")

    def misfit(self, source: ModelSize) -> str | None:
        width, head = self._width(source), source.head_dim
        if width % head == 0 and source.width % width == 0:
            return None
        return f"template_width is {width}; it must be a multiple of the head size {head} that divides the width {source.width}"

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        if target.width > source.width:
            return f"it makes no width above the source's {source.width}"
        if target.width % self._width(source):
            return f"it makes no width but multiples of its templates', {self._width(source)}"
        return other_head_size(source, target)

    def _width(self, source: ModelSize) -> int:
        return self.template_width or source.width

    def number_of_templates(self, matrix: str, source: ModelSize) -> int:
        """N of a matrix type: 4, 2, 5, 5, 7 for qkv, o, in, out, adaLN with templates of the source's width."""
        as_fine = sum(matrix_shape(matrix, 1)) * (source.width / self._width(source)) ** 2  # U and V have out + in rows
        return max(1, round(self.template_ratio * as_fine))

    def _drawn_templates(self, number: int, matrix: str, source: ModelSize, generator: torch.Generator) -> Tensor:
        shape = (number, self._width(source), self._width(source))
        return torch.randn(shape, generator=generator) * _xavier_std(matrix, source.width)

    def _drawn_scalers(self, matrix: str, source: ModelSize, depth: int, generator: torch.Generator) -> Tensor:
        """S ~ N(0, 1 / N): with drawn templates W has the energy of a Xavier matrix. 0 keeps adaLN-Zero."""
        number, blocks = self.number_of_templates(matrix, source), source.width // self._width(source)
        scaler = torch.randn(depth, number, *matrix_shape(matrix, blocks), generator=generator) / math.sqrt(number)
        return torch.zeros_like(scaler) if matrix == "adaLN" else scaler

    def constrained(self, source: DiTConfig, *, seed: int) -> WaveDiT:
        generator, size = torch.Generator().manual_seed(seed), source.size
        one_block = ModelSize(depth=1, width=size.width, num_heads=size.num_heads)
        tensors = outer_tensors(fresh_model(DiTConfig(**{**vars(source), "size": one_block}), seed).state_dict())
        for m in BLOCK_MATRICES:
            tensors[TEMPLATE + m] = self._drawn_templates(self.number_of_templates(m, size), m, size, generator)
            tensors[SCALER + m] = self._drawn_scalers(m, size, size.depth, generator)
            tensors[BIAS + m] = torch.zeros(matrix_shape(m, size.width)[0])
        return WaveDiT(source, tensors, only_scalers=False)

    def keep_of(self, trained: RebuiltDiT) -> Tensors:
        assert isinstance(trained, WaveDiT)
        return {name: tensor.detach().cpu().clone() for name, tensor in trained.tensors().items()}

    def keep(self, ancestor: DiT) -> Tensors:
        """The least squared error over all layers' blocks, by a truncated singular value decomposition.

        A template is as large as a drawn one; its scalers have the rest. Biases are means over the layers.
        """
        state, size = ancestor.state_dict(), ancestor.config.size
        generator, width = torch.Generator().manual_seed(0), self._width(size)
        kept = outer_tensors(state)
        for m, place in BLOCK_MATRICES.items():
            weights, biases = (
                torch.stack([state[f"blocks.{layer}.{place}.{part}"] for layer in range(size.depth)])
                for part in ("weight", "bias")
            )
            left, sigma, right = torch.linalg.svd(rearranged(weights.double(), width), full_matrices=False)
            number, norm = self.number_of_templates(m, size), width * _xavier_std(m, size.width)
            templates, scalers = right[:number].unflatten(1, (width, width)) * norm, (left * sigma)[:, :number] / norm
            # Templates beyond the rank are drawn and have scalers of 0: zero templates too would never get a gradient.
            more = self._drawn_templates(number - len(templates), m, size, generator).to(templates)
            scalers = torch.cat([scalers, scalers.new_zeros(len(scalers), len(more))], dim=1)  # (L a b, N)
            rows, columns = matrix_shape(m, size.width // width)
            kept[TEMPLATE + m] = torch.cat([templates, more]).to(weights.dtype)
            kept[SCALER + m] = scalers.unflatten(0, (size.depth, rows, columns)).movedim(-1, 1).to(weights.dtype).contiguous()
            kept[BIAS + m] = biases.mean(dim=0)
        return kept

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> WaveDiT:
        """Only scalers are trainable. A narrower size takes the first channels of everything, and of a scaler the first blocks,
        times the root of the ratio of the widths, which keeps the energy. `seed` draws random scalers."""
        source, size = inherited.config.size, target.size
        generator, kept, tensors = torch.Generator().manual_seed(seed), inherited.tensors, {}
        rows, blocks = prefix_rows(source, size), _first_blocks(size.width // self._width(source))
        for name, tensor in kept.items():
            if name.startswith(TEMPLATE):
                tensors[name] = tensor.clone()
            elif not name.startswith(SCALER):
                axes = WIDTH_AXES[name if name.startswith(BIAS) else f"outer.{name}"]
                tensors[name] = select_rows(tensor, axes, rows) if axes else tensor.clone()
        for m in BLOCK_MATRICES:
            if self.scaler_init == "random":
                scaler = self._drawn_scalers(m, source, size.depth, generator)
            else:
                own = kept[SCALER + m]
                scaler = interpolate_depth(own.flatten(1), size.depth).unflatten(1, own.shape[1:])
            tensors[SCALER + m] = select_rows(scaler, _scaler_axes(m), blocks) * math.sqrt(source.width / size.width)
        return WaveDiT(target, tensors, only_scalers=True)


def _xavier_std(matrix: str, width: int) -> float:
    return math.sqrt(2 / sum(matrix_shape(matrix, width)))


def _scaler_axes(matrix: str) -> tuple[tuple[int, str, int], ...]:
    """The axes of scalers (L, N, a, b) that depend on the width: those of the matrix, in blocks."""
    axes = dense_axes(f"blocks.0.{BLOCK_MATRICES[matrix]}.weight")
    return tuple((dim + 2, index_set, chunks) for dim, index_set, chunks in axes)


def _first_blocks(number: int) -> RowChoice:
    """The first `number` blocks of residual channels and of heads, and as many of hidden units as belong to them."""
    hidden = torch.arange(matrix_shape("in", number)[0])
    return RowChoice(residual=hidden[:number], heads=hidden[:number], hidden=hidden)
