"""The protocol of a score: how it was obtained, without which it does not exist."""

from __future__ import annotations

from dataclasses import dataclass

from fine_core.sampling.sampler import SamplerSpec

NEIGHBOURS = 3  # of the manifolds of precision and recall, as in the paper


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """How a model is scored: `num_samples` images drawn by `sampler`, against a reference.

    The images have the labels of the reference, or the null label if `unconditional`.
    """

    num_samples: int
    sampler: SamplerSpec
    unconditional: bool = False
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.num_samples <= NEIGHBOURS:
            raise ValueError(f"num_samples is {self.num_samples}; scores need at least {NEIGHBOURS + 1}")

    def protocol(self, extractor_name: str, reference_name: str) -> str:
        """One line that names how a score was obtained. Equal protocols make comparable scores."""
        s = self.sampler
        return (
            f"{extractor_name} | {self.num_samples} samples | {s.sampler} {s.sampling_steps} steps"
            f" | guidance {s.guidance_scale:g}{' | null label' if self.unconditional else ''}"
            f" | reference {reference_name}"
        )
