"""Take a base model to a target domain: train, and keep the delta."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import load_model, predicted_file_bytes
from fine_core.data.registry import load_dataset
from fine_core.data.source import ImageSet
from fine_core.dit import DiT, count_macs
from fine_core.initializers.fine.learngene import Learngene
from fine_core.randomness import stream_seed
from fine_core.transfer.bank import load_bank
from fine_core.transfer.delta import load_delta, save_delta, squared_distance, trainable_tensors
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind, Kept, Role
from trainables.jobs.shapes import delta_shapes
from trainables.jobs.work import Work, training_work
from trainables.methods import Start, TransferData, TransferMethod, transfer_method
from trainables.specs.models import FineSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import BANK_FILE, DELTA_FILE, LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store, StoreError
from trainables.training.loop import Progress, train
from trainables.training.phase import Phase

ANY_SHA256 = "0" * 64  # of a file that is not there yet: all hashes have one length


class TransferRecipe:
    """One phase over the prepared base model. `start_tensors` are the trainable ones as the method begins with them."""

    skips_parameters = False

    def __init__(self, job: TransferSpec, base: DiT, start: Start, device: torch.device) -> None:
        self.base, self.options, self.start, self.device = base, job.options, start, device
        self.method: TransferMethod = transfer_method(job.method)
        self.phases = (Phase(name=job.method, steps=job.training.steps, lr=job.training.lr),)
        self.start_tensors: dict[str, Tensor] = {}

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        model = copy.deepcopy(self.base).to(self.device)
        self.method.prepare(model, self.options, self.start)
        self.start_tensors = {name: tensor.clone() for name, tensor in trainable_tensors(model).items()}
        return model

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


def load_base(job: TransferSpec, store: Store) -> DiT:
    """The base model at the target's resolution."""
    return load_model(store.fetch(job.base, MODEL_FILE), expect=job.base.model).at_resolution(job.model.input_size)


def start_of(job: TransferSpec, store: Store) -> Start:
    """What the method of a transfer starts from besides the base model."""
    start = Start(seed=stream_seed(job.seed, "transfer-init"))
    if transfer_method(job.method).needs_learngene and isinstance(job.initialization, FineSpec):
        learngene = Learngene.load(store.fetch(job.initialization.learngene, LEARNGENE_FILE))
        return replace(start, learngene=learngene, width_mode=job.initialization.width_mode)
    return start


def load_transferred(job: TransferSpec, store: Store) -> DiT:
    """The model that a finished transfer serves, from the base model and the stored delta.

    Raises StoreError if the base model is not the one, byte for byte, that the delta was trained on.
    """
    method = transfer_method(job.method)
    model = load_base(job, store)
    method.prepare(model, job.options, start_of(job, store))
    config = load_delta(model, store.fetch(job, DELTA_FILE))
    if config["base_sha256"] != store.record(job.base).files[MODEL_FILE].sha256:
        raise StoreError(f"{job.folder} was made from other bytes of {job.base.folder}; delete it to have it made again")
    return method.merge(model)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A trained transfer: `tuned` as its method prepared it, `served` as it is merged for use."""

    recipe: TransferRecipe
    tuned: DiT
    served: DiT
    progress: Progress


def tune(job: TransferSpec, context: JobContext, *, until_step: int | None = None) -> Tuned:
    """Train a transfer to its end, or to a rung."""
    store, run = context.store, context.run
    base = load_base(job, store).eval()
    recipe = TransferRecipe(job, base, start_of(job, store), run.device)
    bank: ImageSet | None = None
    if job.bank is not None:
        bank, _ = load_bank(store.fetch(job.bank, BANK_FILE), null_label=job.model.num_classes)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=run.device)
    batches = recipe.method.batches(job, data)
    tuned, progress = train(
        recipe,
        batches=batches,
        training=job.training,
        run=run,
        checkpoint_every_steps=context.checkpoint_every_steps,
        until_step=until_step,
    )
    return Tuned(recipe=recipe, tuned=tuned, served=recipe.method.merge(tuned), progress=progress)


class TransferKind(JobKind):
    name = "transfer"
    kept: ClassVar = Kept(file=DELTA_FILE, role=Role.SERVE, seconds="train_s")

    def work(self, job: TransferSpec) -> Work:
        return training_work(job.model, job.training)

    def result_bytes(self, job: TransferSpec) -> int:
        config = delta_config(job, base_sha256=ANY_SHA256)
        return predicted_file_bytes(delta_shapes(job), kind="delta", config=config)

    def serve(self, job: TransferSpec, store: Store) -> DiT:
        return load_transferred(job, store)

    def run(self, job: TransferSpec, context: JobContext) -> Result:
        store, result = context.store, tune(job, context)
        tuned, served = result.tuned, result.served
        if context.run.rank != 0:
            return Result(served=served)
        path = context.folder / DELTA_FILE
        save_delta(tuned, path, delta_config(job, base_sha256=store.record(job.base).files[MODEL_FILE].sha256))
        metrics = {
            **result.progress.costs(job.model, job.training, context.run),
            "params_total": sum(p.numel() for p in served.parameters()),
            "params_trainable": sum(tensor.numel() for tensor in trainable_tensors(tuned).values()),
            "macs": served_macs(served, result.recipe.method),
            "serve_bytes": path.stat().st_size,
            **_distances(result.recipe, tuned, served),
            **_initialize_costs(job, store),
        }
        return Result(metrics=metrics, history=result.progress.history, served=served)


def delta_config(job: TransferSpec, *, base_sha256: str) -> dict[str, str]:
    """The config stored with a delta: its method, the ids of the base model and the transfer, and the base file's hash."""
    return {"method": job.method, "base": job.base.id, "base_sha256": base_sha256, "transfer": job.id}


def _distances(recipe: TransferRecipe, tuned: DiT, served: DiT) -> dict[str, float]:
    """Squared distances to the base (arXiv 2406.00773, the forgetting measure).

    `tuned_distance` is over the trained tensors, in the method's own coordinates (new ones from their start), in all and
    per parameter; `distance` is over the weights that are served, the same coordinates for every mergeable method.
    """
    trained, weights = trainable_tensors(tuned), recipe.base.state_dict()
    own = squared_distance(recipe.start_tensors | {name: t for name, t in weights.items() if name in trained}, trained)
    number = sum(tensor.numel() for tensor in trained.values())
    distances = {"forgetting/tuned_distance": own, "forgetting/tuned_distance_per_parameter": own / number}
    if recipe.method.mergeable:
        distances["forgetting/distance"] = squared_distance(weights, served.state_dict())
    return distances


def served_macs(served: DiT, method: TransferMethod) -> int:
    """Multiply-accumulates of one forward pass of one image; counted from a real one where modules were added."""
    if method.mergeable:
        return count_macs(served.config)
    from torch.utils.flop_counter import FlopCounterMode

    config, device = served.config, served.pos_embed.device
    image = torch.zeros(1, config.in_channels, config.input_size, config.input_size, device=device)
    index = torch.zeros(1, dtype=torch.long, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        served(image, index, index)
    return counter.get_total_flops() // 2


def _initialize_costs(job: TransferSpec, store: Store) -> dict[str, float]:
    """Costs of a transfer's inputs: bytes of base and bank together, bytes of the bank, and seconds to sample the bank."""
    stored = store.record(job.base).metrics["initialize_bytes"]
    if job.bank is None:
        return {"initialize_bytes": stored}
    record = store.record(job.bank)
    bank_bytes, bank_s = record.files[BANK_FILE].bytes, record.metrics["sampling_s"]
    return {"initialize_bytes": stored + bank_bytes, "bank_bytes": bank_bytes, "bank_s": bank_s}
