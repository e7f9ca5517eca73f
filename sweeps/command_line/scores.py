"""What scores a grid, tried on some images while planning: what a job would refuse is refused before anything is computed."""

from __future__ import annotations

import click
import torch
from torch import Tensor, nn

from fine_core.data.pixels import to_uint8
from fine_core.data.registry import dataset_info, load_dataset, reference_dataset, short_name
from fine_core.data.source import DataError
from fine_core.evaluation.adm import check_adm
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.metrics.asked import metrics_named, obtainable
from fine_core.evaluation.samples import fields_of
from sweeps.command_line.inputs import Inputs
from sweeps.planning.grid import GridSpec
from trainables.specs.scorers import OF_CLASSIFIERS, ExtractorSpec, GivenExtractorSpec

NUM_TRIED = 4  # images
TRIED_SIZE = 64  # of random ones, where a VAE would decode latents


def check_scores(grid: GridSpec, inputs: Inputs) -> None:
    """Raises ValueError for an extractor or a reference that cannot score the grid; says which metrics cannot be had."""
    scorers = [(grid.extractor, "reference")]
    if grid.transfer is not None:
        scorers.append((grid.transfer.extractor(grid.extractor), "target_reference"))
    for extractor, option in scorers:
        of_samples, of_reference, kept = _gives(extractor, option, inputs)
        have = {"of_samples": of_samples, "of_reference": of_reference}
        num_images = min([grid.num_samples, *([] if kept is None else [kept])])
        asked = metrics_named(grid.metrics)
        names = obtainable(asked, **have, num_images=num_images)
        if lost := [name for name in obtainable(asked, **have) if name not in names]:
            few = "images to compare with" if kept == num_images else "samples"
            click.echo(f"{short_name(extractor.dataset)}: no {', '.join(lost)}, which need more than {num_images} {few}")


def _gives(extractor: ExtractorSpec, option: str, inputs: Inputs) -> tuple[frozenset[str], frozenset[str], int | None]:
    """Which fields samples and reference will have, and the number of images in the reference (None: many, or unknown)."""
    if not isinstance(extractor, GivenExtractorSpec) or inputs.extractor is None:
        return OF_CLASSIFIERS, OF_CLASSIFIERS, None
    features = _tried(inputs.extractor, extractor)
    if extractor.reference is not None:
        of_reference, kept = check_adm(inputs.paths[option], features)
        return fields_of(features), of_reference, kept
    return fields_of(features), fields_of(features), dataset_info(reference_dataset(extractor.dataset)).num_images


def _tried(module: nn.Module, extractor: GivenExtractorSpec) -> Features:
    """Features of a few of the images that are compared. Raises ValueError if the extractor cannot take them."""
    images = _some_images(extractor.dataset)
    shape = " x ".join(map(str, images.shape[1:]))
    try:
        extract_features(module, images[:1])  # as the last batch of a score may be
        return extract_features(module, images)
    except ValueError:
        raise  # says what is wrong with the output
    except (Exception, SystemExit) as error:  # the user's own module may raise anything
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{extractor.extractor.name} cannot take images of {shape} of {short_name(extractor.dataset)}: "
            f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
        ) from error


def _some_images(dataset: str) -> Tensor:
    """uint8 images (N, C, H, H); random ones in the place of latents whose images are not here."""
    try:
        data = load_dataset(reference_dataset(dataset), "pool")
        return to_uint8(data.take(torch.arange(min(NUM_TRIED, len(data)))))
    except DataError:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (NUM_TRIED, 3, TRIED_SIZE, TRIED_SIZE), generator=generator, dtype=torch.uint8)
