"""Heur-LG and Auto-LG: some blocks of the ancestor are kept as they are, the other blocks of a target are random.

Wang et al., "Learngene: From Open-World to Your Learning Task" (AAAI 2022, arXiv 2106.06788) and "Learngene: Inheriting
Condensed Knowledge" (arXiv 2305.02279), as the FINE benchmark (arXiv 2409.19289, section 4) runs them: fixed rules, with no
search for which blocks to keep. What becomes of a target with fewer blocks is stated nowhere; the rule here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inheritance, Inherited, Tensors, fresh_model, other_width
from fine_core.initializers.matrices import outer_tensors


def blocks_of(state: dict[str, Tensor]) -> list[int]:
    """Indices of the blocks that a state holds, in order."""
    return sorted({int(name.split(".")[1]) for name in state if name.startswith("blocks.")})


@dataclass(frozen=True, kw_only=True)
class KeptBlocks(Inheritance):
    """Keeps `blocks` blocks of the ancestor: the last, which stay on top of a target (`top`), or the first, at its bottom."""

    blocks: int
    top: bool

    def misfit(self, source: ModelSize) -> str | None:
        fits = 1 <= self.blocks <= source.depth
        return None if fits else f"blocks is {self.blocks}; it must be 1 to {source.depth}, the source's depth"

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        return other_width(source, target)

    def keep(self, ancestor: DiT) -> Tensors:
        state, depth = ancestor.state_dict(), len(ancestor.blocks)
        kept = range(depth)[-self.blocks :] if self.top else range(depth)[: self.blocks]
        blocks = {
            name: tensor for name, tensor in state.items() if name.startswith("blocks.") and int(name.split(".")[1]) in kept
        }
        return outer_tensors(state) | blocks

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> DiT:
        """A target with fewer blocks takes the last ones (`top`) or the first ones of those that are kept."""
        model = fresh_model(target, seed)
        state, depth = inherited.tensors, target.size.depth
        sources = blocks_of(state)
        number = min(len(sources), depth)
        sources = sources[-number:] if self.top else sources[:number]
        places = range(depth - number, depth) if self.top else range(number)
        new = outer_tensors(state)
        for source, place in zip(sources, places, strict=True):
            own = f"blocks.{source}."
            new |= {f"blocks.{place}.{name.removeprefix(own)}": t for name, t in state.items() if name.startswith(own)}
        model.load_state_dict(new, strict=False)  # copies: the inherited tensors are not shared
        return model
