"""The transfer stage of a grid: base models x methods x schedules, and the knowledge banks that they share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fine_core.data.registry import DATASETS, dataset_info
from fine_core.retention import RetentionSchedule
from fine_core.sampling.sampler import SamplerSpec
from sweeps.planning.settings import TransferSettings, TunedTransfer
from trainables.methods import transfer_method
from trainables.specs.base import FileSpec, check
from trainables.specs.models import BaseModelSpec
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.transfers import BankSpec, RehearsalSpec, TransferSpec


def scorer(dataset: str) -> ExtractorSpec:
    """The classifier that scores a dataset when no extractor is given. Raises ValueError for one by path, which has none."""
    check(
        dataset in DATASETS,
        f"what scores {dataset}? Name Inception's weights with --inception-weights PATH, or another extractor with --extractor",
    )
    return ExtractorSpec(dataset=dataset)


@dataclass(frozen=True, kw_only=True)
class TransferGridSpec:
    """What is done to every base model: each method, and each method that takes a schedule once per schedule.

    `initializations`: whose base models are taken. `lr` is that of full fine-tuning; methods have factors of their own.
    `tuned`: settings that a search found, done besides. `target_reference`: an ADM `.npz` in the place of the target's images
    when scores are taken.
    """

    target: str
    methods: tuple[str, ...]
    initializations: tuple[str, ...]
    schedules: tuple[str, ...]
    weighting: str
    retention_weight: float
    source_ratio: float
    gamma_span: float
    steps: int
    lr: float
    bank_images: int
    bank_sampler: SamplerSpec
    tuned: tuple[TunedTransfer, ...] = ()
    target_reference: FileSpec | None = None

    def __post_init__(self) -> None:
        dataset_info(self.target)
        methods = [transfer_method(name) for name in self.methods]
        for method in methods:
            method.check_installed()
        check(self.retention_weight >= 0, f"retention_weight is {self.retention_weight}; it must be 0 or more")
        check(0 <= self.gamma_span <= 1, f"gamma_span is {self.gamma_span}; it must be between 0 and 1")
        for tuned in self.tuned:
            transfer_method(tuned.method).check_installed()
            check(
                tuned.initialization in self.initializations,
                f"settings were found for base models of {tuned.initialization}; add --transfer-from {tuned.initialization}",
            )
        keys = [(tuned.method, tuned.initialization, tuned.size) for tuned in self.tuned]
        twice = [f"{method} at {size}" for method, _, size in set(keys) if keys.count((method, _, size)) > 1]
        check(not twice, f"settings of {', '.join(sorted(twice))} come twice; name one file for them")
        has_tuned = {tuned.method for tuned in self.tuned}
        takes = [method.name for method in methods if method.rehearses and method.name not in has_tuned]
        check(bool(self.schedules) or not takes, f"schedules is empty; {', '.join(takes)} needs at least one")
        applies = any(self._applies(method.name, name) for method in methods for name in self.initializations)
        check(
            applies,
            f"{', '.join(self.methods)} needs base models of fine; add it to --initializations, or another --transfer",
        )
        self.parsed_schedules()

    def parsed_schedules(self) -> list[RetentionSchedule]:
        """The schedules, each once. Raises ValueError for one that is not known."""
        return list(dict.fromkeys(RetentionSchedule.parse(text) for text in self.schedules))

    @staticmethod
    def _applies(method: str, initialization: str) -> bool:
        """Whether base models of an initialization have what a method needs."""
        return initialization == "fine" or not transfer_method(method).needs_learngene

    def transfers(self, base: BaseModelSpec) -> list[TransferSpec]:
        """Every transfer that a base model can take. Raises ValueError if the target does not fit it."""
        if base.initialization.name not in self.initializations:
            return []
        found = []
        for name in self.methods:
            if not self._applies(name, base.initialization.name):
                continue
            schedules = self.parsed_schedules() if transfer_method(name).rehearses else [None]
            found += [self.transfer(base, name, self.default_settings(name, schedule)) for schedule in schedules]
        return found

    def default_settings(self, name: str, schedule: RetentionSchedule | None) -> TransferSettings:
        """This grid's own settings of a method."""
        return TransferSettings(
            schedule=schedule,
            retention_weight=self.retention_weight,
            source_ratio=self.source_ratio,
            gamma_span=self.gamma_span,
            lr=self.lr * transfer_method(name).lr_factor,
        )

    def extractor(self, base: ExtractorSpec) -> ExtractorSpec:
        """What scores the target: the extractor that scores the base models, with the target's own reference."""
        if not isinstance(base, GivenExtractorSpec):
            return scorer(self.target)
        return replace(base, dataset=self.target, reference=self.target_reference)

    def transfer(self, base: BaseModelSpec, name: str, settings: TransferSettings) -> TransferSpec:
        """One transfer of a base model. Raises ValueError if the target does not fit it."""
        method, rehearsal, bank = transfer_method(name), None, None
        if settings.schedule is not None:
            retains = method.retains and settings.retention_weight > 0
            rehearsal = RehearsalSpec(
                schedule=settings.schedule,
                weighting=self.weighting,
                retention_weight=settings.retention_weight if retains else 0.0,
                source_ratio=settings.source_ratio if retains else None,
            )
            if method.uses_bank and retains:
                bank = BankSpec(base=base, num_images=self.bank_images, sampler=self.bank_sampler)
        transfer = TransferSpec(
            base=base,
            method=name,
            rehearsal=rehearsal,
            bank=bank,
            gamma_span=settings.gamma_span if method.uses_scales else None,
            dataset=self.target,
            training=replace(base.training, steps=self.steps, lr=settings.lr),
            seed=base.seed,
        )
        transfer.check_data()
        check(
            bank is None or transfer.model.input_size == base.model.input_size,
            f"{name} rehearses images of the source, which are smaller than those of {self.target!r}; leave it out",
        )
        return transfer
