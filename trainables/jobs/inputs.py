"""Artifacts that a user gives: a model, an extractor or reference statistics, a VAE. Known by the hash of what is in
them, and put into the store by the sweep's own process, so that workers need no other path."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fine_core.checkpoints.native import CheckpointError, load_model, save_model
from fine_core.data.latents import VAE_CONFIG, VAE_WEIGHTS, load_vae, vae_sha256
from fine_core.dit import DiT
from fine_core.files import sha256_of
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind
from trainables.specs.base import FileSpec, JobSpec, SourceSpec, VaeSpec
from trainables.specs.identity import to_json
from trainables.storage.files import MODEL_FILE
from trainables.storage.provenance import provenance
from trainables.storage.record import Record
from trainables.storage.store import Store


class InputKind(JobKind):
    """What the user gives. The sweep's own process puts it into the store."""

    def run(self, job: JobSpec, context: JobContext) -> Result:
        raise TypeError(f"a {self.name} is given, not computed")


class FileKind(InputKind):
    name = "file"


class VaeKind(InputKind):
    name = "vae"


class SourceKind(InputKind):
    name = "source"

    def serve(self, job: SourceSpec, store: Store) -> DiT:
        return load_model(store.fetch(job, MODEL_FILE), expect=job.model)


def source_spec(model: DiT) -> SourceSpec:
    """What a model is known by: equal weights are the same source, whatever file they came in."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / MODEL_FILE)
        return SourceSpec(sha256=sha256_of(Path(folder) / MODEL_FILE), model=model.config)


def publish_source(job: SourceSpec, model: DiT, store: Store) -> None:
    _publish(job, store, lambda folder: save_model(model, folder / MODEL_FILE))


def file_spec(path: Path) -> FileSpec:
    """Raises CheckpointError if there is no such file."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    return FileSpec(sha256=sha256_of(path), name=path.name)


def publish_file(job: FileSpec, path: Path, store: Store) -> None:
    _publish(job, store, lambda folder: shutil.copyfile(path, folder / job.name))


def vae_spec(folder: Path) -> VaeSpec:
    """Raises CheckpointError for a folder that holds no AutoencoderKL of diffusers."""
    job = VaeSpec(sha256=vae_sha256(folder))
    load_vae(folder / VAE_CONFIG, folder / VAE_WEIGHTS)
    return job


def publish_vae(job: VaeSpec, source: Path, store: Store) -> None:
    def write(folder: Path) -> None:
        for name in (VAE_CONFIG, VAE_WEIGHTS):
            shutil.copyfile(source / name, folder / name)

    _publish(job, store, write)


def _publish(job: JobSpec, store: Store, write: Callable[[Path], object]) -> None:
    """Put files into the store, unless they are there and whole."""
    if store.read_record(job) is not None and store.is_intact(job):
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        record = Record(id=job.id, kind=job.kind, label=job.label, spec=to_json(job), metrics={}, provenance=provenance())
        store.publish(job, Path(folder), record)
