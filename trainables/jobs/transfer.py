"""Take a base model to a target domain: train, keep the delta, score on the target and, for forgetting, on the source."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import load_model
from fine_core.data.registry import load_dataset
from fine_core.data.source import ImageSet
from fine_core.dit import DiT, count_macs
from fine_core.initializers.fine.learngene import Learngene
from fine_core.randomness import stream_seed
from fine_core.transfer.bank import load_bank
from fine_core.transfer.delta import load_delta, save_delta, squared_distance, trainable_tensors
from trainables.jobs.scoring import save_grid, score_model, score_source
from trainables.methods import MethodOptions, TransferData, TransferMethod, transfer_method
from trainables.specs.models import FineSpec
from trainables.specs.transfers import RungSpec, TransferSpec
from trainables.storage.files import BANK_FILE, DELTA_FILE, LEARNGENE_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.storage.store import Store, Twin
from trainables.training.context import RunContext
from trainables.training.loop import Phase, Progress, train


class TransferRecipe:
    """One phase over the prepared base model. `start` holds the trainable tensors as the method begins with them."""

    skips_parameters = False

    def __init__(self, job: TransferSpec, base: DiT, options: MethodOptions, device: torch.device) -> None:
        self.base, self.options, self.device = base, options, device
        self.method: TransferMethod = transfer_method(job.method)
        self.phases = (Phase(name=job.method, steps=job.training.steps, lr=job.training.lr),)
        self.start: dict[str, Tensor] = {}

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        model = copy.deepcopy(self.base).to(self.device)
        self.method.prepare(model, self.options)
        self.start = {name: tensor.clone() for name, tensor in trainable_tensors(model).items()}
        return model

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


def load_base(job: TransferSpec, store: Store) -> DiT:
    """The base model at the target's resolution."""
    return load_model(store.fetch(job.base, MODEL_FILE), expect=job.base.model).at_resolution(job.model.input_size)


def method_options(job: TransferSpec, store: Store) -> MethodOptions:
    """What the method of a transfer needs besides the base model."""
    options = MethodOptions(seed=stream_seed(job.seed, "transfer-init"))
    if job.gamma_span is not None:
        options = replace(options, gamma_span=job.gamma_span)
    if transfer_method(job.method).needs_learngene and isinstance(job.initialization, FineSpec):
        learngene = Learngene.load(store.fetch(job.initialization.learngene, LEARNGENE_FILE))
        options = replace(options, learngene=learngene, width_mode=job.initialization.width_mode)
    return options


def load_transferred(job: TransferSpec, store: Store) -> DiT:
    """The model that a finished transfer serves, from the base model and the stored delta."""
    method = transfer_method(job.method)
    model = load_base(job, store)
    method.prepare(model, method_options(job, store))
    load_delta(model, store.fetch(job, DELTA_FILE))
    return method.merge(model)


def _tune(
    job: TransferSpec, store: Store, run: RunContext, every: int, *, until_step: int | None = None, twin: Twin | None = None
) -> tuple[TransferRecipe, DiT, Progress]:
    """Train a transfer to its end, unless a twin was, or to a rung. Returns the recipe, the tuned model and how it went."""
    base = load_base(job, store).eval()
    recipe = TransferRecipe(job, base, method_options(job, store), run.device)
    if twin is not None:
        tuned = recipe.model_for(0, None)
        load_delta(tuned, store.fetch(twin, DELTA_FILE))
        return recipe, tuned, Progress.of_record(store.read_record(twin))
    bank: ImageSet | None = None
    if job.bank is not None:
        bank, _ = load_bank(store.fetch(job.bank, BANK_FILE), null_label=job.model.num_classes)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=run.device)
    batches = recipe.method.batches(job, data)
    tuned, progress = train(
        recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=every, until_step=until_step
    )
    return recipe, tuned, progress


def run_rung(job: RungSpec, store: Store, run: RunContext, every: int) -> dict[str, Any]:
    """Train a transfer's first steps and score them by the proxy protocol, on the target alone."""
    recipe, tuned, progress = _tune(job.transfer, store, run, every, until_step=job.step)
    served = recipe.method.merge(tuned)
    scores = score_model(served, job.evaluation, job.transfer.extractor, store=store, seed=job.seed, run=run)
    metrics = {"fid": scores.fid, "eval_s": scores.eval_s, "train_s": progress.train_s}
    return {"metrics": metrics, "protocol": scores.protocol, "history": progress.history}


def run_transfer(
    job: TransferSpec, folder: Path, store: Store, run: RunContext, every: int, twin: Twin | None
) -> dict[str, Any]:
    recipe, tuned, progress = _tune(job, store, run, every, twin=twin)
    served = recipe.method.merge(tuned)
    scores = score_model(served, job.evaluation, job.extractor, store=store, seed=job.seed, run=run)
    remembered = _source_scores(job, served, store, run)
    if run.rank != 0:
        return {"metrics": {}}
    save_delta(tuned, folder / DELTA_FILE, job.delta_config)
    save_grid(scores.shown, folder / SAMPLES_FILE)
    num_trained = sum(tensor.numel() for tensor in trainable_tensors(tuned).values())
    metrics = {
        **scores.values,
        "eval_s": scores.eval_s,
        "train_s": progress.train_s,
        "train_steps": progress.step,
        "params_total": sum(p.numel() for p in served.parameters()),
        "params_trainable": num_trained,
        "macs": served_macs(served, recipe.method),
        "serve_bytes": (folder / DELTA_FILE).stat().st_size,
        **_distances(recipe, tuned, served),
        **remembered,
        **_initialize_costs(job, store),
    }
    return {"metrics": metrics, "protocol": scores.protocol, "history": progress.history}


def _distances(recipe: TransferRecipe, tuned: DiT, served: DiT) -> dict[str, float]:
    """Squared distances to the base (arXiv 2406.00773, the forgetting measure).

    `tuned_distance` is over the trained tensors, in the method's own coordinates (new ones from their start), in all and
    per parameter; `distance` is over the weights that are served, the same coordinates for every mergeable method.
    """
    trained, weights = trainable_tensors(tuned), recipe.base.state_dict()
    own = squared_distance(recipe.start | {name: t for name, t in weights.items() if name in trained}, trained)
    number = sum(tensor.numel() for tensor in trained.values())
    distances = {"forgetting/tuned_distance": own, "forgetting/tuned_distance_per_parameter": own / number}
    if recipe.method.mergeable:
        distances["forgetting/distance"] = squared_distance(weights, served.state_dict())
    return distances


def _source_scores(job: TransferSpec, served: DiT, store: Store, run: RunContext) -> dict[str, float]:
    """FID on the source domain under the null label, after the transfer; the base's own is in its record.

    The classes have been given to the target, so the null label is where the source can still be remembered. (It learns of
    the target too, from target images whose label was dropped.) Not measured at another resolution than the source's.
    """
    if job.model.input_size != job.base.model.input_size:
        return {}
    scores = score_source(served, job.base, store, run)
    before = store.read_record(job.base)["metrics"]["source_fid"]
    return {"forgetting/source_fid": scores.fid, "forgetting/source_fid_before": before, "forgetting/eval_s": scores.eval_s}


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
    """What had to be there before: bytes to initialize the base and its bank, and the seconds that the bank took."""
    stored = store.read_record(job.base)["metrics"]["initialize_bytes"]
    if job.bank is None:
        return {"initialize_bytes": stored}
    record = store.read_record(job.bank)
    bank_bytes = record["files"][BANK_FILE]["bytes"]
    bank_s = record["metrics"]["sampling_s"]
    return {"initialize_bytes": stored + bank_bytes, "bank_bytes": bank_bytes, "bank_s": bank_s}
