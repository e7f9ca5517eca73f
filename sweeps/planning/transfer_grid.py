"""The transfer stage of a grid: base models x methods x schedules, and the knowledge banks that they share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from fine_core.data.registry import DATASETS, dataset_info
from fine_core.sampling.sampler import SamplerSpec
from sweeps.planning.chosen import ChosenOptions, options_of_methods
from sweeps.planning.settings import TransferSettings, TunedTransfer
from trainables.methods import resolve, transfer_method
from trainables.specs.base import FileSpec, check
from trainables.specs.models import BaseModelSpec
from trainables.specs.options import named
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.transfers import BankSpec, TransferSpec


def scorer(dataset: str) -> ExtractorSpec:
    """The classifier that scores a dataset when no extractor is given. Raises ValueError for one by path, which has none."""
    check(
        dataset in DATASETS,
        f"what scores {dataset}? Name Inception's weights with --inception-weights PATH, or another extractor with --extractor",
    )
    return ExtractorSpec(dataset=dataset)


@dataclass(frozen=True, kw_only=True)
class TransferGridSpec:
    """What is done to every base model: each method, once for every combination of its options' values.

    `initializations`: whose base models are taken. `lr` is that of full fine-tuning; methods have factors of their own.
    `tuned`: settings that a search found, done besides. `target_reference`: an ADM `.npz` in the place of the target's images
    when scores are taken.
    """

    target: str
    methods: tuple[str, ...]
    initializations: tuple[str, ...]
    options: ChosenOptions
    steps: int
    lr: float
    bank_images: int
    bank_sampler: SamplerSpec
    tuned: tuple[TunedTransfer, ...] = ()
    target_reference: FileSpec | None = None

    def __post_init__(self) -> None:
        dataset_info(self.target)
        has_tuned = {tuned.method for tuned in self.tuned}
        for name in self.methods:
            transfer_method(name).check_installed()
            empty = [text for text, values in self.options.values.items() if not values and self._has_option(name, text)]
            check(not empty or name in has_tuned, f"{', '.join(empty)} has no value; {name} needs at least one")
        for kind in options_of_methods():
            self.options.each(kind, {})  # raises ValueError for a value that it cannot have, whatever method has it
        for tuned in self.tuned:
            transfer_method(tuned.method).check_installed()
            check(
                tuned.initialization in self.initializations,
                f"settings were found for base models of {tuned.initialization}; add --transfer-from {tuned.initialization}",
            )
        keys = [(tuned.method, tuned.initialization, tuned.size) for tuned in self.tuned]
        twice = [f"{method} at {size}" for method, _, size in set(keys) if keys.count((method, _, size)) > 1]
        check(not twice, f"settings of {', '.join(sorted(twice))} come twice; name one file for them")
        applies = any(self._applies(method, name) for method in self.methods for name in self.initializations)
        check(
            applies,
            f"{', '.join(self.methods)} needs base models of fine; add it to --initializations, or another --transfer",
        )

    @staticmethod
    def _has_option(method: str, name: str) -> bool:
        return any(name == named(kind.group, item.name) for kind in transfer_method(method).options for item in kind.fields())

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
            found += [self.transfer(base, name, settings) for settings in self.settings_of(name)]
        return found

    def settings_of(self, name: str) -> list[TransferSettings]:
        """This grid's own settings of a method, one for every combination of its options' values."""
        method, fixed = resolve(name)
        combinations = product(*(self.options.each(kind, fixed) for kind in method.options))
        return [TransferSettings(lr=self.lr * method.lr_factor, options=options) for options in combinations]

    def extractor(self, base: ExtractorSpec) -> ExtractorSpec:
        """What scores the target: the extractor that scores the base models, with the target's own reference."""
        if not isinstance(base, GivenExtractorSpec):
            return scorer(self.target)
        return replace(base, dataset=self.target, reference=self.target_reference)

    def transfer(self, base: BaseModelSpec, name: str, settings: TransferSettings) -> TransferSpec:
        """One transfer of a base model. Raises ValueError if the target does not fit it."""
        method = transfer_method(name)
        bank = None
        if method.uses_bank(settings.options):
            bank = BankSpec(base=base, num_images=self.bank_images, sampler=self.bank_sampler)
        transfer = TransferSpec(
            base=base,
            method=method.name,
            options=settings.options,
            bank=bank,
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
