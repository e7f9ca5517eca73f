"""Specs of what scores: the features, and the statistics of the images that samples are compared with."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from fine_core.data.registry import dataset_info, reference_dataset, short_name
from fine_core.evaluation.metrics.asked import obtainable
from trainables.specs.base import FileSpec, JobSpec, VaeSpec, check
from trainables.specs.identity import spec

OF_CLASSIFIERS = frozenset({"pooled", "features", "logits"})  # fields of `Samples` that the built-in extractors fill


@spec("extractor")
class ExtractorSpec(JobSpec):
    """The feature extractor of an embedded dataset, and the reference statistics of its `pool` split."""

    kind: ClassVar[str] = "extractor"
    vae: ClassVar[VaeSpec | None] = None
    dataset: str
    seed: int = 0

    def check_data(self) -> None:
        """Nothing: the embedded datasets are always there."""

    def check_metrics(self, names: tuple[str, ...]) -> None:
        """Raises ValueError for metrics that need more than the classifier gives."""
        obtainable(names, of_samples=OF_CLASSIFIERS, of_reference=OF_CLASSIFIERS)

    @property
    def label(self) -> str:
        return f"feature extractor of {short_name(self.dataset)}"


@spec("given-extractor")
class GivenExtractorSpec(ExtractorSpec):
    """Features of an extractor that the user gives, and the reference statistics of a dataset by it.

    The reference comes from the dataset's images (of latents: those that they were made from), or from an ADM `.npz`. `vae`
    decodes what models of latents draw.
    """

    extractor: FileSpec
    format: str
    weights_sha256: str
    reference: FileSpec | None = None
    vae: VaeSpec | None = None  # type: ignore[misc]  # a field here, a constant of embedded datasets

    @property
    def quoted(self) -> str:
        """Name and hash, of the file and of the weights that it leads to, as protocols quote them."""
        digest = hashlib.sha256(f"{self.extractor.sha256} {self.weights_sha256}".encode()).hexdigest()
        return f"{self.extractor.name}@{digest[:12]}"

    def check_data(self) -> None:
        """Raises ValueError if the dataset cannot be scored so. Looks at its files, which need not be there later."""
        latents = dataset_info(self.dataset).latents
        check(latents is None or self.vae is not None, f"{self.dataset} holds latents; name the VAE that decodes them: --vae")
        check(latents is not None or self.vae is None, f"{self.dataset} holds images; --vae is for latents, leave it out")
        check(
            latents is None or self.vae is None or latents.vae_sha256 == self.vae.sha256,
            f"{self.dataset} was encoded by another VAE (sha256 {latents and latents.vae_sha256[:12]}...) than --vae",
        )
        if self.reference is None:
            try:
                dataset_info(reference_dataset(self.dataset))
            except ValueError as error:
                raise ValueError(
                    f"the images that {short_name(self.dataset)} is compared with cannot be used ({error}); "
                    "name an ADM .npz with --reference, or encode the latents again"
                ) from error

    def check_metrics(self, names: tuple[str, ...]) -> None:
        """Nothing: what a given extractor gives is seen when it runs."""

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return tuple(need for need in (self.extractor, self.reference, self.vae) if need is not None)

    @property
    def label(self) -> str:
        return f"reference of {short_name(self.dataset)}"
