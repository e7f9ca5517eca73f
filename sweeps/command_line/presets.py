"""Presets: the defaults of a sweep's options, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fine_core.evaluation.metrics import DEFAULT_METRICS


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of the options of the same names. `options`: of methods and initializations, by their whole names."""

    depths: str
    widths: str
    head_dim: int
    methods: str | None = None
    dataset: str = "digits"
    seeds: str = "0"
    source_steps: int
    source_seeds: str = "0"
    equal_steps: str = "total"
    score_at: str | None = None
    patch_size: int = 2
    steps: int
    batch_size: int
    lr: float
    ema_decay: float
    grad_clip: float | None = None
    num_samples: int
    sampler: str = "dpm-solver++"
    sampling_steps: int
    guidance_scale: float = 1.0
    metrics: str = ",".join(DEFAULT_METRICS)
    forgetting: str = "quick"
    target: str | None = None
    transfer: str = "full,difffit,fine-sigma,diff-tuning"
    transfer_steps: int
    transfer_lr: float
    bank_images: int
    bank_sampler: str = "dpm-solver++"
    bank_sampling_steps: int
    bank_guidance_scale: float = 1.5
    options: dict[str, Any] = field(default_factory=dict)
    gpus_per_worker: str = "auto"
    checkpoint_every_steps: int = 100


# Default target of each dataset. Other datasets have none: their base models are transferred only if --target is given.
DEFAULT_TARGETS = {"digits": "digits-rotated-few", "shapes": "shapes-few", "shapes-32": "shapes-few-32"}


@dataclass(frozen=True, kw_only=True)
class EvaluationPreset:
    """Cost of a score: defaults of the options of the same names."""

    num_samples: int
    sampler: str
    sampling_steps: int
    guidance_scale: float


# quick is enough to rank the points of a sweep; paper is the protocol of DiT (arXiv 2212.09748, section 5) as released.
EVALUATIONS = {
    "quick": EvaluationPreset(num_samples=1_000, sampler="dpm-solver++", sampling_steps=15, guidance_scale=1.0),
    "standard": EvaluationPreset(num_samples=10_000, sampler="ddim", sampling_steps=50, guidance_scale=1.5),
    "paper": EvaluationPreset(num_samples=50_000, sampler="ddpm-dit", sampling_steps=250, guidance_scale=1.5),
}

BOTH_SCHEDULES = {"diff-tuning.schedule": "linear,power:0.5"}

# Every initialization of the benchmark of FINE (arXiv 2409.19289, section 4.1) that needs no download, and some more.
BENCHMARKED = (
    "scratch,he,mimetic,share,sws,tleg,wave,heur-lg,auto-lg,weight-selection,weight-selection-heads,per-layer-svd,"
    "per-layer-svd-matched,frequency,ligo,fine,full"
)

# The demo takes minutes on a laptop. dit-b has the step counts of the FINE paper's DiT-B experiments and of the Diff-Tuning
# paper's transfers; several widths are our addition.
PRESETS = {
    "demo": Preset(
        depths="2,4,6",
        widths="32,64",
        head_dim=16,
        steps=300,
        batch_size=64,
        lr=4e-3,
        ema_decay=0.99,
        options={"fine.sigma_steps": 100, "per-layer-svd.sigma_steps": 100, "wave.scaler_steps": 100},
        source_steps=2000,
        num_samples=1000,
        sampling_steps=15,
        transfer_steps=300,
        transfer_lr=3e-3,
        bank_images=500,
        bank_sampling_steps=20,
    ),
    "dit-b": Preset(
        depths="4,6,8,10,12",
        widths="384,576,768",
        head_dim=64,
        steps=100_000,
        batch_size=64,
        lr=1e-4,
        ema_decay=0.9999,
        options={**BOTH_SCHEDULES, "fine.sigma_steps": 300},
        source_steps=300_000,
        num_samples=10_000,
        sampling_steps=50,
        transfer_steps=24_000,
        transfer_lr=1e-4,
        bank_images=200_000,
        bank_sampling_steps=50,
        gpus_per_worker="1",
        checkpoint_every_steps=1000,
    ),
    "learngene-benchmark": Preset(
        depths="2,4,6",
        widths="64",
        head_dim=16,
        methods=BENCHMARKED,
        steps=200,
        equal_steps="free",
        score_at="0,25,50,100",
        batch_size=64,
        lr=4e-3,
        ema_decay=0.99,
        options={
            **BOTH_SCHEDULES,
            "fine.sigma_steps": 100,
            "per-layer-svd.sigma_steps": 100,
            "wave.scaler_steps": 100,
            "ligo.growth_steps": 100,
            "sws.stages": 2,
            "heur-lg.blocks": 2,
            "auto-lg.blocks": 3,
        },
        source_steps=2000,
        num_samples=1000,
        sampling_steps=15,
        transfer="none",
        transfer_steps=300,
        transfer_lr=3e-3,
        bank_images=500,
        bank_sampling_steps=20,
    ),
    # The paper's DiT-B; DiT-L is --widths 1024. One width, as there.
    "learngene-benchmark-b": Preset(
        depths="4,6,8,10,12",
        widths="768",
        head_dim=64,
        methods=BENCHMARKED,
        steps=100_000,
        equal_steps="free",
        score_at="0,1000,10000,50000",
        batch_size=64,
        lr=1e-4,
        ema_decay=0.9999,
        options={**BOTH_SCHEDULES, "sws.stages": 5, "auto-lg.blocks": 6, "heur-lg.blocks": 3},
        source_steps=300_000,
        num_samples=10_000,
        sampling_steps=50,
        transfer="none",
        transfer_steps=24_000,
        transfer_lr=1e-4,
        bank_images=200_000,
        bank_sampling_steps=50,
        gpus_per_worker="1",
        checkpoint_every_steps=1000,
    ),
}
