"""What a job computes, before it is computed: multiply-accumulates, and seconds on a core."""

from __future__ import annotations

from dataclasses import dataclass

from fine_core.dit import DiTConfig, count_macs
from fine_core.sampling.sampler import SamplerSpec
from fine_core.speed import PASSES_PER_STEP
from trainables.specs.base import TrainingSpec

# One core of a 2-core x86 machine, fitted to steps of DiTs with 2-6 blocks of 32-64 channels at batch 64.
CORE_MACS_PER_S = 32e9
PASS_OVERHEAD_S, BLOCK_OVERHEAD_S = 1.5e-3, 0.7e-3


@dataclass(frozen=True, kw_only=True)
class Work:
    """Training steps of a model at a batch size, and images drawn from it, `images_at_once` in a batch.

    `model` is None for a job without a DiT. `fixed_s`: seconds that depend on none of these.
    """

    model: DiTConfig | None = None
    steps: int = 0
    batch_size: int = 0
    images: int = 0
    images_at_once: int = 1
    sampler: SamplerSpec | None = None
    fixed_s: float = 0.0

    @property
    def _passes_per_image(self) -> int:
        return 0 if self.sampler is None else self.sampler.passes_per_sample

    @property
    def macs(self) -> float:
        """Multiply-accumulates: three passes per training image, and the sampler's passes per image drawn."""
        if self.model is None:
            return 0.0
        images = self.images * self._passes_per_image + PASSES_PER_STEP * self.batch_size * self.steps
        return float(count_macs(self.model)) * images

    @property
    def core_s(self) -> float:
        """Seconds on one CPU core like the one the constants were measured on; start-up not included."""
        if self.model is None:
            return self.fixed_s
        passes = -(-self.images // self.images_at_once) * self._passes_per_image + PASSES_PER_STEP * self.steps
        overhead_s = passes * (PASS_OVERHEAD_S + self.model.size.depth * BLOCK_OVERHEAD_S)
        return self.fixed_s + self.macs / CORE_MACS_PER_S + overhead_s


def training_work(model: DiTConfig, training: TrainingSpec) -> Work:
    """The work of a training."""
    return Work(model=model, steps=training.steps, batch_size=training.batch_size)
