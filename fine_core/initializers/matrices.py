"""The names of a DiT's tensors: the five matrices of every block with their biases, and what lies outside the blocks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# The five matrices of every block, and their names in a DiT block.
BLOCK_MATRICES = {
    "qkv": "attn.qkv",
    "o": "attn.proj",
    "in": "mlp.fc1",
    "out": "mlp.fc2",
    "adaLN": "adaLN_modulation.1",
}
BLOCK_TENSORS = tuple(f"{place}.{part}" for place in BLOCK_MATRICES.values() for part in ("weight", "bias"))
POSITIONS = "pos_embed"


def matrix_shape(matrix: str, width: int) -> tuple[int, int]:
    """(out, in) of one block matrix at `width`."""
    outputs = {"qkv": 3, "o": 1, "in": 4, "out": 1, "adaLN": 6}[matrix]
    inputs = {"out": 4}.get(matrix, 1)
    return outputs * width, inputs * width


def outer_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embedders and final layer of a DiT's state, by name; the fixed position table is not among them."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("blocks.") and name != POSITIONS}


def all_but_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DiT's state without the position table, which is computed for every size."""
    return {name: tensor for name, tensor in state.items() if name != POSITIONS}
