"""The best measured model under a budget: candidates from all records of a store, the choice, and its card."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from fine_core.checkpoints.native import config_to_json, load_model, predicted_file_bytes
from fine_core.data.registry import labels_to_sample, load_dataset, short_name
from fine_core.dit import DiT
from fine_core.evaluation.reference import save_samples_npz
from fine_core.sampling.draw import draw_batch
from sweeps.planning.costs import model_shapes
from sweeps.results.pareto import OPTIONAL_MEANS, non_dominated, standard_error
from trainables.jobs.scorer import load_scorer, load_stored_vae
from trainables.jobs.transfer import load_transferred
from trainables.methods import transfer_method
from trainables.specs.base import check
from trainables.specs.from_record import job_from_record
from trainables.specs.models import FineSpec, PointSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import MODEL_FILE
from trainables.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point over its seeds, as it would be served: dense. `serve_bytes` is the size of that file, not of a delta."""

    jobs: tuple[PointSpec, ...]
    records: tuple[dict[str, Any], ...]
    serve_bytes: int

    @property
    def fids(self) -> list[float]:
        return [record["metrics"]["fid"] for record in self.records]

    @property
    def fid(self) -> float:
        return float(np.mean(self.fids))

    @property
    def costs(self) -> dict[str, float]:
        metrics = self.records[0]["metrics"]
        return {"serve_bytes": self.serve_bytes, "params": metrics["params_total"], "gmacs": metrics["macs"] / 1e9}


def candidates(store: Store) -> list[Candidate]:
    """Every scored point that can be merged into a dense DiT. Those that differ in their seed alone are one."""
    groups: dict[str, list[tuple[PointSpec, dict[str, Any]]]] = defaultdict(list)
    for kind in ("trial", "transfer"):
        for record in store.records(kind):
            job = job_from_record(record)
            if job is None or (isinstance(job, TransferSpec) and not transfer_method(job.method).mergeable):
                continue
            groups[json.dumps([_without_seeds(asdict(job)), record["protocol"]], sort_keys=True)].append((job, record))
    found = []
    for members in groups.values():
        members.sort(key=lambda pair: pair[0].seed)
        jobs, records = zip(*members, strict=True)
        config = jobs[0].model
        bytes_ = predicted_file_bytes(model_shapes(config), kind="dit", config=config_to_json(config))
        found.append(Candidate(jobs=jobs, records=records, serve_bytes=bytes_))
    return found


def _without_seeds(spec: Any) -> Any:
    """A spec's content but for its seeds and those of the base and bank within it; a learngene's seed makes another one."""
    if not isinstance(spec, dict):
        return spec
    shared = ("learngene", "extractor")
    return {k: v if k in shared else _without_seeds(v) for k, v in spec.items() if k != "seed"}


def on_dataset(found: Sequence[Candidate], dataset: str | None, protocol: str = "") -> list[Candidate]:
    """Those of one dataset, and of the one protocol that contains a text. Raises ValueError if there is none, or several."""
    check(bool(found), "the store holds no scored point; run a sweep first")
    datasets = sorted({short_name(candidate.jobs[0].dataset) for candidate in found})
    check(
        dataset is not None or len(datasets) == 1, f"points on several datasets; choose one of {', '.join(datasets)}: --dataset"
    )
    dataset = dataset or datasets[0]
    check(dataset in datasets, f"no point on {dataset!r}; there are points on {', '.join(datasets)}")
    chosen = [candidate for candidate in found if short_name(candidate.jobs[0].dataset) == dataset]
    protocols = sorted({candidate.records[0]["protocol"] for candidate in chosen})
    fitting = [one for one in protocols if protocol in one]
    check(bool(fitting), f"no protocol on {dataset} contains {protocol!r}; there are: {'; '.join(protocols)}")
    check(
        len(fitting) == 1,
        f"points on {dataset} have {len(fitting)} protocols, which cannot be compared: {'; '.join(fitting)}. "
        "Choose one by a part of it: --protocol '10000 samples'",
    )
    return [candidate for candidate in chosen if candidate.records[0]["protocol"] == fitting[0]]


def pick(found: Sequence[Candidate], limits: dict[str, float]) -> Candidate:
    """The lowest mean FID within the limits. Raises ValueError, with what would be least, if nothing keeps to them."""
    fitting = [c for c in found if all(c.costs[name] <= limit for name, limit in limits.items())]
    least = ", ".join(f"{name} {min(c.costs[name] for c in found):,.6g}" for name in limits)
    check(bool(fitting), f"no point keeps to {_text(limits)}; the least is {least}")
    return min(fitting, key=lambda candidate: candidate.fid)


def _text(limits: dict[str, float]) -> str:
    return ", ".join(f"{name} <= {limit:,.6g}" for name, limit in limits.items())


def served_model(candidate: Candidate, store: Store) -> DiT:
    """The dense model of its first seed: to take the best of the seeds would be to pick twice."""
    job = candidate.jobs[0]
    if isinstance(job, TransferSpec):
        return load_transferred(job, store)
    return load_model(store.fetch(job, MODEL_FILE), expect=job.model)


def vae_of(candidate: Candidate, store: Store) -> nn.Module | None:
    """The VAE that a model of latents is served with; None for a model of pixels."""
    extractor = candidate.jobs[0].extractor
    return None if extractor.vae is None else load_stored_vae(extractor.vae, store)


def save_samples(candidate: Candidate, model: DiT, num_samples: int, path: Path, store: Store, console: Console) -> None:
    """Draw images as the point's protocol draws them, with the labels of its dataset, and write them as an ADM `.npz`."""
    job = candidate.jobs[0]
    scorer = load_scorer(job.extractor, store, torch.device("cpu"))
    labels = labels_to_sample(load_dataset(job.dataset, "pool"), num_samples).split(job.evaluation.batch_size)
    images = []
    for index, part in enumerate(track(labels, "drawing samples", console=console, transient=True)):
        drawn = draw_batch(model.eval(), part, job.evaluation.sampler, seed=job.seed, index=index)
        images.append(scorer.to_images(drawn))
    save_samples_npz(path, torch.cat(images))


def card(candidate: Candidate, found: Sequence[Candidate]) -> dict[str, Any]:
    """All that is known of a point: method, settings, scores with their protocol and uncertainty, costs, lineage."""
    job, record = candidate.jobs[0], candidate.records[0]
    metrics = record["metrics"]
    costs = np.array([c.serve_bytes for c in found], dtype=float)
    front = non_dominated(costs, np.array([c.fid for c in found]))
    content: dict[str, Any] = {
        "method": job.method if isinstance(job, TransferSpec) else job.initialization.name,
        "initialization": job.initialization.name,
        "dataset": job.dataset,
        "size": asdict(job.size),
        "fid": candidate.fid,
        "fid_standard_error": standard_error(candidate.fids),
        **{name: float(np.mean([r["metrics"][name] for r in candidate.records])) for name in OPTIONAL_MEANS if name in metrics},
        "seeds": [j.seed for j in candidate.jobs],
        "protocol": record["protocol"],
        "on_front_of_serve_bytes": bool(front[[c is candidate for c in found].index(True)]),
        "costs": candidate.costs,
        "training": {"steps": job.training.steps, "lr": job.training.lr, "batch_size": job.training.batch_size},
        "seconds": {"training": metrics["train_s"], "evaluation": metrics["eval_s"]},
        "lineage": lineage(job),
        "provenance": record["provenance"],
    }
    if isinstance(job, TransferSpec):
        content["delta_bytes"] = metrics["serve_bytes"]
        content["source_fid"] = metrics.get("forgetting/source_fid")
        if job.rehearsal is not None:
            content["rehearsal"] = {**asdict(job.rehearsal), "schedule": str(job.rehearsal.schedule)}
    return content


def lineage(job: PointSpec) -> list[dict[str, str]]:
    """What a point was made from, itself first, down to the learngene or the given model."""
    chain = [job]
    if isinstance(job, TransferSpec):
        chain += [job.base] if job.bank is None else [job.bank, job.base]
    base = chain[-1]
    if isinstance(base.initialization, FineSpec):
        chain.append(base.initialization.learngene)
        chain += [need for need in chain[-1].needs if need.kind == "source"]
    return [{"kind": part.kind, "id": part.id, "label": part.label} for part in chain]
