"""FINE: assemble the size from the learngene, train sigma alone, merge to dense weights, go on unconstrained.

arXiv 2409.19289, section 3.3; the learning rate of the sigma phase is ours (the paper states none).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from fine_core.dit import ModelSize
from fine_core.initializers.fine.learngene import SIGMA_INITS, WIDTH_MODES, Learngene
from fine_core.initializers.inherited import other_head_size
from fine_core.initializers.rebuilt import merge
from fine_core.randomness import stream_seed
from trainables.initializations.base import Initialization, Setting
from trainables.jobs.learngene import DecompositionKind, LearngeneKind
from trainables.specs.base import check
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, DecompositionSpec, FineSpec, LearngeneSpec
from trainables.specs.options import Choice, Options, Parameter, option
from trainables.storage.files import LEARNGENE_FILE
from trainables.storage.store import Store
from trainables.training.phase import Phase

SIGMA_STEPS_FACTORS = (0, 1, 2)  # of the present sigma steps: where a search may look


@spec("fine-options")
class FineOptions(Options):
    """`rank_ratio`: rank of the factors over the learngene's width."""

    group: ClassVar[str] = "fine"
    sigma_init: str = option("linear", "initial values of sigma", choices=SIGMA_INITS, old_names=("--sigma-init",))
    sigma_steps: int = option(300, "training steps in which only sigma is trained (0: none)", old_names=("--sigma-steps",))
    sigma_lr: float = option(1e-2, "learning rate of the sigma steps", old_names=("--sigma-lr",))
    width_mode: str = option(
        "nested",
        "smaller widths are trained as prefixes (nested) or cut out afterwards (slice)",
        choices=WIDTH_MODES,
        old_names=("--width-mode",),
    )
    rank_ratio: float = option(
        1.0,
        "rank of the factors divided by the learngene's width",
        search=Choice(name="rank_ratio", values=(0.5, 1.0, 1.5)),
        changes_artifact=True,
        old_names=("--rank-ratio",),
    )
    als_sweeps: int = option(
        50, "iterations of alternating least squares in the decomposition of --source", old_names=("--als-sweeps",)
    )
    teacher_weight: float = option(
        0.0, "weight of the outputs of --source in the learngene's training", old_names=("--teacher-weight",)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rank_ratio > 0, f"rank_ratio is {self.rank_ratio}; it must be positive")
        check(self.sigma_lr > 0, f"sigma_lr is {self.sigma_lr}; it must be positive")

    def search(self, name: str, *, steps: int) -> tuple[Parameter, ...]:
        if name != "sigma_steps":
            return super().search(name, steps=steps)
        values = sorted({min(factor * self.sigma_steps, steps) for factor in SIGMA_STEPS_FACTORS})
        return (Choice(name=name, values=tuple(values)),)


class FineRecipe:
    """Phase 0 trains sigma of the assembled model, phase 1 the merged model."""

    skips_parameters = False

    def __init__(self, job: BaseModelSpec, fine: FineSpec, learngene: Learngene) -> None:
        self.job, self.fine, self.learngene = job, fine, learngene
        self.phases = (
            Phase(name="sigma", steps=fine.sigma_steps, lr=fine.sigma_lr),
            Phase(name="free", steps=job.training.steps - fine.sigma_steps, lr=job.training.lr),
        )

    def model_for(self, phase: int, previous: nn.Module | None) -> nn.Module:
        if phase == 1:
            return merge(previous)
        return self.learngene.assemble(
            self.job.size,
            sigma_init=self.fine.sigma_init,
            width_mode=self.fine.width_mode,
            seed=stream_seed(self.job.seed, "init"),
        )

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Fine(Initialization):
    name = "fine"
    summary = "assembled from a learngene that all sizes share"
    options = FineOptions
    kinds = (DecompositionKind(), LearngeneKind())

    def spec(self, setting: Setting, options: Options | None) -> FineSpec:
        assert isinstance(options, FineOptions)
        return FineSpec(
            learngene=self._learngene(setting, options),
            sigma_init=options.sigma_init,
            sigma_steps=options.sigma_steps,
            sigma_lr=options.sigma_lr,
            width_mode=options.width_mode,
        )

    @staticmethod
    def _learngene(setting: Setting, options: FineOptions) -> LearngeneSpec:
        """As deep and wide as the grid's largest model, or as the given one, which it is decomposed from."""
        width = setting.largest.size.width
        nested = tuple(sorted(w for w in set(setting.widths) if w < width)) if options.width_mode == "nested" else ()
        rank = max(1, round(options.rank_ratio * width))
        decomposition = None
        if setting.source is not None:
            decomposition = DecompositionSpec(
                source=setting.source, rank=rank, nested_widths=nested, als_sweeps=options.als_sweeps
            )
        return LearngeneSpec(
            dataset=setting.dataset,
            model=setting.largest,
            rank=rank,
            nested_widths=nested,
            training=setting.training_for(setting.source_steps),
            decomposition=decomposition,
            teacher_weight=0.0 if decomposition is None else options.teacher_weight,
            seed=setting.source_seed,
        )

    def refusal(self, setting: Setting, options: Options | None, size: ModelSize) -> str | None:
        return other_head_size(setting.largest.size, size)

    def steps(self, setting: Setting, options: Options | None, asked: int) -> int:
        assert isinstance(options, FineOptions)
        return asked + (options.sigma_steps if setting.counts_free_steps else 0)

    def recipe(self, job: BaseModelSpec, store: Store) -> FineRecipe:
        assert isinstance(job.initialization, FineSpec)
        learngene = Learngene.load(store.fetch(job.initialization.learngene, LEARNGENE_FILE))
        return FineRecipe(job, job.initialization, learngene)
