"""From a grid to a plan: unique artifacts by stage, trials, and what they will cost. Computes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

from fine_core.dit import ModelSize, count_macs, count_parameters
from fine_core.evaluation import EvaluationSpec
from fine_core.sampling import SamplerSpec
from trainables.initializations import INITIALIZATIONS
from trainables.spec import (
    ExtractorSpec,
    FineSpec,
    JobSpec,
    LearngeneSpec,
    ScratchSpec,
    TrainingSpec,
    TrialSpec,
    check,
    model_config,
)

# One core of a 2-core x86 machine, fitted to steps of DiTs with 2-6 blocks of 32-64 channels at batch 64.
CORE_MACS_PER_S = 32e9
PASS_OVERHEAD_S, BLOCK_OVERHEAD_S = 1.5e-3, 0.7e-3
EXTRACTOR_S = 5.0


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """A size grid: every method at every depth x width, once per seed. `rank_ratio` is the factors' rank over the width."""

    dataset: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    head_dim: int
    patch_size: int
    steps: int
    batch_size: int
    lr: float
    ema_decay: float
    grad_clip: float | None
    sigma_init: str
    sigma_steps: int
    sigma_lr: float
    width_mode: str
    source_steps: int
    rank_ratio: float
    num_samples: int
    sampler: SamplerSpec

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "methods", "seeds"):
            check(len(getattr(self, name)) > 0, f"{name} is empty; name at least one")
        check(self.head_dim >= 1, f"head_dim is {self.head_dim}; it must be at least 1")
        check(self.rank_ratio > 0, f"rank_ratio is {self.rank_ratio}; it must be positive")
        check(self.sigma_lr > 0, f"sigma_lr is {self.sigma_lr}; it must be positive")
        check(all(seed >= 0 for seed in self.seeds), "seeds must be 0 or more")
        for method in self.methods:
            check(method in INITIALIZATIONS, f"unknown method {method!r}; choose from {', '.join(INITIALIZATIONS)}")

    def size(self, depth: int, width: int) -> ModelSize:
        multiple = max(1, round(width / self.head_dim)) * self.head_dim
        check(
            width > 0 and width % self.head_dim == 0,
            f"width {width} is not divisible into heads of {self.head_dim} channels; use {multiple}, or another --head-dim",
        )
        return ModelSize(depth=depth, width=width, num_heads=width // self.head_dim)

    def _training(self, steps: int) -> TrainingSpec:
        return TrainingSpec(
            steps=steps, batch_size=self.batch_size, lr=self.lr, ema_decay=self.ema_decay, grad_clip=self.grad_clip
        )

    @property
    def learngene(self) -> LearngeneSpec:
        """The source of every FINE trial: as deep and wide as the grid's largest model."""
        width = max(self.widths)
        nested = tuple(sorted(set(self.widths) - {width})) if self.width_mode == "nested" else ()
        return LearngeneSpec(
            dataset=self.dataset,
            model=model_config(self.dataset, self.size(max(self.depths), width), patch_size=self.patch_size),
            rank=max(1, round(self.rank_ratio * width)),
            nested_widths=nested,
            training=self._training(self.source_steps),
        )

    def initialization(self, method: str) -> FineSpec | ScratchSpec:
        if method == "scratch":
            return ScratchSpec()
        return FineSpec(
            learngene=self.learngene,
            sigma_init=self.sigma_init,
            sigma_steps=self.sigma_steps,
            sigma_lr=self.sigma_lr,
            width_mode=self.width_mode,
        )

    def trial(self, method: str, depth: int, width: int, seed: int) -> TrialSpec:
        return TrialSpec(
            initialization=self.initialization(method),
            model=model_config(self.dataset, self.size(depth, width), patch_size=self.patch_size),
            dataset=self.dataset,
            training=self._training(self.steps),
            evaluation=EvaluationSpec(num_samples=self.num_samples, sampler=self.sampler),
            extractor=ExtractorSpec(dataset=self.dataset),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a sweep by stage: `source` makes the artifacts that `base` trials share."""

    source: tuple[JobSpec, ...]
    base: tuple[TrialSpec, ...]

    @property
    def sweep_id(self) -> str:
        """A hash of the points: the same grid is the same sweep."""
        return hashlib.sha256(" ".join(sorted(trial.id for trial in self.base)).encode()).hexdigest()[:10]

    @property
    def stages(self) -> dict[str, tuple[JobSpec, ...]]:
        return {"source": self.source, "base": self.base}

    @property
    def jobs(self) -> tuple[JobSpec, ...]:
        """The jobs of all stages, in the order of the stages."""
        return (*self.source, *self.base)


def plan_grid(grid: GridSpec) -> Plan:
    """Expand a grid. Largest models come first, so that no long trial is left over at the end. Raises ValueError."""
    points = product(grid.methods, grid.depths, grid.widths, grid.seeds)
    trials = {trial.id: trial for trial in (grid.trial(*point) for point in points)}
    ordered = sorted(trials.values(), key=lambda trial: -estimated_core_s(trial))
    needs = {need.id: need for trial in ordered for need in trial.needs}
    return Plan(source=tuple(needs.values()), base=tuple(ordered))


def predicted_serve_bytes(trial: TrialSpec) -> int:
    """Bytes of the dense fp32 weights (the file adds a header of a few kB)."""
    return 4 * count_parameters(trial.model)


def training_macs(job: JobSpec) -> float:
    """Multiply-accumulates of a job: three passes per training image, and the sampler's passes per scored image."""
    if isinstance(job, ExtractorSpec):
        return 0.0
    macs = 3.0 * count_macs(job.model) * job.training.batch_size * job.training.steps
    if isinstance(job, TrialSpec):
        macs += float(count_macs(job.model)) * job.evaluation.num_samples * job.evaluation.sampler.passes_per_sample
    return macs


def estimated_core_s(job: JobSpec) -> float:
    """Seconds on one CPU core like the one the constants were measured on; start-up not included."""
    if isinstance(job, ExtractorSpec):
        return EXTRACTOR_S
    passes = 3 * job.training.steps
    if isinstance(job, TrialSpec):
        batches = -(-job.evaluation.num_samples // job.evaluation.batch_size)
        passes += batches * job.evaluation.sampler.passes_per_sample
    per_pass = PASS_OVERHEAD_S + job.model.size.depth * BLOCK_OVERHEAD_S
    return training_macs(job) / CORE_MACS_PER_S + passes * per_pass
