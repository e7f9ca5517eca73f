"""What a sweep's options name by path: a model, an extractor, references, a VAE, and folders of images."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
from torch import nn

from fine_core.checkpoints.formats import describe, open_any
from fine_core.checkpoints.native import CheckpointError
from fine_core.data.by_path import is_by_path, resolve
from fine_core.data.readers.base import Wanted
from fine_core.dit import DiT
from fine_core.evaluation.extractors.given import extractor_format, load_given_extractor, weights_sha256
from sweeps.planning.grid import ScoringSpec
from trainables.jobs.inputs import (
    file_spec,
    publish_file,
    publish_source,
    publish_vae,
    source_spec,
    vae_spec,
)
from trainables.specs.base import FileSpec, SourceSpec, check
from trainables.storage.store import Store

DEFAULT_IMAGE_SIZE = 32
COLUMN_OPTIONS = (
    click.option("--image-column", help="Column of the images in a table.  [default: one that is named as usual, or latent]"),
    click.option("--label-column", help="Column of the labels in a table, or in metadata.csv.  [default: label and the like]"),
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that the user gives, read and checked; paths where it came from. None where nothing was."""

    model: DiT | None
    extractor: nn.Module | None
    source: SourceSpec | None
    scoring: ScoringSpec | None
    target_reference: FileSpec | None
    paths: dict[str, Path]

    def publish(self, store: Store) -> None:
        """Put it all into the store."""
        if self.source is not None:
            publish_source(self.source, self.model, store)
        if self.scoring is not None:
            publish_file(self.scoring.extractor, self.paths["extractor"], store)
            if self.scoring.reference is not None:
                publish_file(self.scoring.reference, self.paths["reference"], store)
            if self.scoring.vae is not None:
                publish_vae(self.scoring.vae, self.paths["vae"], store)
        if self.target_reference is not None:
            publish_file(self.target_reference, self.paths["target_reference"], store)


def read_inputs(options: dict[str, Any]) -> Inputs:
    """What the options name, read once. Raises ValueError for what cannot be read."""
    names = ("source", "inception_weights", "extractor", "reference", "target_reference", "vae")
    return _read(*(options[name] for name in (*names, "source_num_heads", "source_num_classes")))


@lru_cache(maxsize=1)
def _read(
    source: str | None,
    inception_weights: str | None,
    extractor: str | None,
    reference: str | None,
    target_reference: str | None,
    vae: str | None,
    num_heads: int | None,
    num_classes: int | None,
) -> Inputs:
    check(inception_weights is None or extractor is None, "name --inception-weights or --extractor, not both")
    given = {"extractor": inception_weights or extractor, "reference": reference, "target_reference": target_reference}
    paths = {name: Path(path).expanduser() for name, path in {**given, "vae": vae}.items() if path is not None}
    for name in ("reference", "target_reference", "vae"):
        check(
            name not in paths or "extractor" in paths,
            f"--{name.replace('_', '-')} needs an extractor: --inception-weights PATH or --extractor PATH",
        )
    model = None if source is None else _read_model(Path(source).expanduser(), num_heads, num_classes)
    scoring = extractor_module = None
    if "extractor" in paths:
        kind = "inception" if inception_weights else extractor_format(paths["extractor"])
        extractor_module = _load_extractor(paths["extractor"], kind)
        scoring = ScoringSpec(
            extractor=file_spec(paths["extractor"]),
            format=kind,
            weights_sha256=weights_sha256(extractor_module),
            reference=file_spec(paths["reference"]) if "reference" in paths else None,
            vae=vae_spec(paths["vae"]) if "vae" in paths else None,
        )
    return Inputs(
        model=model,
        extractor=extractor_module,
        source=None if model is None else source_spec(model),
        scoring=scoring,
        target_reference=file_spec(paths["target_reference"]) if "target_reference" in paths else None,
        paths=paths,
    )


def _load_extractor(path: Path, kind: str) -> nn.Module:
    """An extractor, loaded from a copy as workers load it: code may not lean on files beside it."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copyfile(path, Path(folder) / path.name)
        try:
            return load_given_extractor(copy, format=kind)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(copy), str(path))) from error


def _read_model(path: Path, num_heads: int | None, num_classes: int | None) -> DiT:
    model, kind = open_any(path, num_heads=num_heads, num_classes=num_classes)
    click.echo(f"source: {kind}, {describe(model.config)}")
    return model


def dataset_named(text: str, options: dict[str, Any], inputs: Inputs) -> str:
    """The dataset that an option means, one by path with all that fixes its images. Raises ValueError."""
    if not is_by_path(text):
        return text
    size = options["image_size"]
    if size is None:
        size = DEFAULT_IMAGE_SIZE if inputs.model is None else inputs.model.config.input_size
    return resolve(text, wanted=wanted_from(options, image_size=size), flips=options["flip"])


def wanted_from(options: dict[str, Any], *, image_size: int) -> Wanted:
    return Wanted(image_size=image_size, image_column=options["image_column"], label_column=options["label_column"])
