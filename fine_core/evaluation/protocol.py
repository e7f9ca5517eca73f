"""The protocol of a score: how it was obtained. There is no score without a protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fine_core.evaluation.metrics import DEFAULT_METRICS
from fine_core.evaluation.metrics.asked import metrics_named
from fine_core.evaluation.metrics.manifold import NEIGHBOURS
from fine_core.sampling.sampler import SamplerSpec


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """How a model is scored: `num_samples` images drawn by `sampler`, against a reference.

    The images have the labels of the reference, or the null label if `unconditional`. Of the default `metrics` those are
    computed that extractor and reference allow; others that cannot be had are refused. Raises ValueError for unknown ones.
    """

    num_samples: int
    sampler: SamplerSpec
    unconditional: bool = False
    batch_size: int = 250
    metrics: tuple[str, ...] = field(default=DEFAULT_METRICS, metadata={"introduced": DEFAULT_METRICS})  # see ids of specs

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", metrics_named(self.metrics))  # in whatever order they were named
        if self.num_samples <= NEIGHBOURS:
            raise ValueError(f"num_samples is {self.num_samples}; scores need at least {NEIGHBOURS + 1}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that fixes how a score was obtained. Only scores of equal protocols may be compared.

    `extractor` and `reference` are names with hashes of their content. `replaced_steps` is the number of denoising steps
    that another model took (see `fine_core.sampling.draw.Tail`). `str()` gives one line for people.
    """

    extractor: str
    reference: str
    num_samples: int
    sampler: SamplerSpec
    unconditional: bool = False
    replaced_steps: int = 0

    @classmethod
    def of(cls, evaluation: EvaluationSpec, *, extractor: str, reference: str, replaced_steps: int = 0) -> Protocol:
        return cls(
            extractor=extractor,
            reference=reference,
            num_samples=evaluation.num_samples,
            sampler=evaluation.sampler,
            unconditional=evaluation.unconditional,
            replaced_steps=replaced_steps,
        )

    def __str__(self) -> str:
        s = self.sampler
        return (
            f"{self.extractor} | {self.num_samples} samples | {s.sampler} {s.sampling_steps} steps"
            f" | guidance {s.guidance_scale:g}{'' if s.precision == 'fp32' else f' | {s.precision}'}"
            f"{' | null label' if self.unconditional else ''}"
            f"{f' | last {self.replaced_steps} by the base' if self.replaced_steps else ''}"
            f" | reference {self.reference}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Protocol:
        return cls(**{**data, "sampler": SamplerSpec(**data["sampler"])})
