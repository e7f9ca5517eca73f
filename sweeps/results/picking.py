"""The best measured model under a budget: candidates from all records of a store, the choice, and its card."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from fine_core.data.registry import labels_to_sample, load_dataset, short_name
from fine_core.denoiser import LABEL
from fine_core.dit import DiT
from fine_core.evaluation.adm import save_samples_npz
from fine_core.evaluation.metrics import METRICS
from fine_core.evaluation.protocol import Protocol
from fine_core.sampling.draw import draw_batch
from sweeps.planning.points import PlannedPoint
from sweeps.results.pareto import non_dominated, standard_error
from sweeps.results.points import PointResult, point_result
from trainables.jobs.run import load_served
from trainables.jobs.scorer import load_scorer, load_stored_vae
from trainables.jobs.shapes import model_file_bytes
from trainables.methods import transfer_method
from trainables.specs.base import JobSpec, check
from trainables.specs.identity import to_json
from trainables.specs.models import BaseModelSpec, PointSpec
from trainables.specs.options import to_values
from trainables.specs.scores import ScoreSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point over its seeds, as it would be served: dense. `serve_bytes` is the size of that file, not of a delta."""

    results: tuple[PointResult, ...]
    serve_bytes: int

    @property
    def jobs(self) -> list[BaseModelSpec | TransferSpec]:
        return [result.job for result in self.results]

    @property
    def protocol(self) -> Protocol:
        return self.results[0].protocol

    @property
    def fids(self) -> list[float]:
        return [result.metrics["fid"] for result in self.results]

    @property
    def fid(self) -> float:
        return float(np.mean(self.fids))

    @property
    def costs(self) -> dict[str, float]:
        metrics = self.results[0].metrics
        return {"serve_bytes": self.serve_bytes, "params": metrics["params_total"], "gmacs": metrics["macs"] / 1e9}


def candidates(store: Store) -> list[Candidate]:
    """Every scored point that can be merged into a dense DiT. Those that differ in their seed alone are one."""
    scores = {job.id: job for job, _ in store.records("score") if isinstance(job, ScoreSpec)}
    on_source = {s.trained.id: s for s in scores.values() if s.rung is None and s.evaluation.unconditional}
    groups: dict[str, list[PointResult]] = defaultdict(list)
    for score in scores.values():
        model = score.scored
        if not isinstance(model, BaseModelSpec | TransferSpec) or score.evaluation.unconditional or score.replaced_steps:
            continue
        if isinstance(model, TransferSpec) and not transfer_method(model.method).mergeable:
            continue
        result = point_result(_with_forgetting(model, score, on_source.get(model.id), scores), store)
        if result is not None:
            groups[json.dumps([_without_seeds(to_json(model)), str(result.protocol)], sort_keys=True)].append(result)
    found = []
    for members in groups.values():
        found.append(Candidate(results=_by_model(members), serve_bytes=model_file_bytes(members[0].job.model)))
    return found


def _by_model(members: Sequence[PointResult]) -> tuple[PointResult, ...]:
    """One result per model, by seed: scored twice for different metrics, it is still one point of one protocol."""
    found: dict[str, PointResult] = {}
    for result in sorted(members, key=lambda result: result.job.seed):
        known = found.get(result.id)
        found[result.id] = result if known is None else replace(known, metrics=result.metrics | known.metrics)
    return tuple(found.values())


def _with_forgetting(
    model: BaseModelSpec | TransferSpec, score: ScoreSpec, after: ScoreSpec | None, scores: Mapping[str, ScoreSpec]
) -> PlannedPoint:
    """A point with the scores on its source domain, after a transfer and before it, if a store has both."""
    if after is None or model.base is model:
        return PlannedPoint(model=model, score=score)
    before = scores.get(replace(after, scored=model.base).id)
    if before is None:
        return PlannedPoint(model=model, score=score)
    return PlannedPoint(model=model, score=score, forgetting=after, forgetting_before=before)


def _without_seeds(spec: Any) -> Any:
    """A spec's content but for its seeds and those of the base and bank within it; a learngene's seed makes another one."""
    if not isinstance(spec, dict):
        return spec
    shared = ("learngene", "extractor")
    return {k: v if k in shared else _without_seeds(v) for k, v in spec.items() if k != "seed"}


def _callable_names(datasets: Collection[str]) -> dict[str, str]:
    """What each dataset is called: its short name, or its whole one where others have the same short one."""
    shorts = Counter(short_name(name) for name in datasets)
    return {name: short if shorts[short := short_name(name)] == 1 else name for name in sorted(datasets)}


def on_dataset(found: Sequence[Candidate], dataset: str | None, protocol: str = "") -> list[Candidate]:
    """Candidates on one dataset, of the one protocol whose text contains `protocol`. Raises ValueError for none or several."""
    check(bool(found), "the store holds no scored point; run a sweep first")
    names = _callable_names({candidate.jobs[0].dataset for candidate in found})
    listed = ", ".join(sorted(names.values()))
    check(dataset is not None or len(names) == 1, f"points on several datasets; choose one of {listed}: --dataset")
    dataset = dataset or next(iter(names.values()))
    whole = [name for name, called in names.items() if dataset in (name, called)]
    check(bool(whole), f"no point on {dataset!r}; there are points on {listed}")
    chosen = [candidate for candidate in found if candidate.jobs[0].dataset == whole[0]]
    protocols = sorted({str(candidate.protocol) for candidate in chosen})
    fitting = [one for one in protocols if protocol in one]
    check(bool(fitting), f"no protocol on {dataset} contains {protocol!r}; there are: {'; '.join(protocols)}")
    check(
        len(fitting) == 1,
        f"points on {dataset} have {len(fitting)} protocols, which cannot be compared: {'; '.join(fitting)}. "
        "Choose one by a part of it: --protocol '10000 samples'",
    )
    return [candidate for candidate in chosen if str(candidate.protocol) == fitting[0]]


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
    return load_served(candidate.jobs[0], store)


def vae_of(candidate: Candidate, store: Store) -> nn.Module | None:
    """The VAE that a model of latents is served with; None for a model of pixels."""
    extractor = candidate.results[0].score.extractor
    return None if extractor.vae is None else load_stored_vae(extractor.vae, store)


def save_samples(candidate: Candidate, model: DiT, num_samples: int, path: Path, store: Store, console: Console) -> None:
    """Draw images as the point's protocol draws them, with the labels of its dataset, and write them as an ADM `.npz`."""
    job, score = candidate.jobs[0], candidate.results[0].score
    scorer = load_scorer(score.extractor, store, torch.device("cpu"))
    labels = labels_to_sample(load_dataset(job.dataset, "pool"), num_samples).split(score.evaluation.batch_size)
    images = []
    for index, part in enumerate(track(labels, "drawing samples", console=console, transient=True)):
        drawn = draw_batch(model.eval(), {LABEL: part}, score.evaluation.sampler, seed=score.seed, index=index)
        images.append(scorer.to_images(drawn))
    save_samples_npz(path, torch.cat(images))


def card(candidate: Candidate, found: Sequence[Candidate]) -> dict[str, Any]:
    """All that is known of a point: method, settings, scores with their protocol and uncertainty, costs, lineage."""
    result = candidate.results[0]
    job, metrics, seeds = result.job, result.metrics, [one.metrics for one in candidate.results]
    costs = np.array([c.serve_bytes for c in found], dtype=float)
    front = non_dominated(costs, np.array([c.fid for c in found]))
    content: dict[str, Any] = {
        "method": job.method if isinstance(job, TransferSpec) else job.initialization.name,
        "initialization": job.initialization.name,
        "dataset": job.dataset,
        "size": asdict(job.size),
        "fid_standard_error": standard_error(candidate.fids),
        **{name: float(np.mean([m[name] for m in seeds])) for name in METRICS if all(name in m for m in seeds)},
        "seeds": [j.seed for j in candidate.jobs],
        "protocol": str(result.protocol),
        "protocol_fields": result.protocol.to_json(),
        "on_front_of_serve_bytes": bool(front[[c is candidate for c in found].index(True)]),
        "costs": candidate.costs,
        "training": {"steps": job.training.steps, "lr": job.training.lr, "batch_size": job.training.batch_size},
        "seconds": {"training": metrics["train_s"], "evaluation": metrics["eval_s"]},
        "lineage": lineage(job),
        "provenance": result.model_record.provenance,
    }
    if isinstance(job, TransferSpec):
        content["delta_bytes"] = metrics["serve_bytes"]
        content["source_fid"] = metrics.get("forgetting/source_fid")
        content["options"] = to_values(job.options)
    return content


def lineage(job: PointSpec) -> list[dict[str, str]]:
    """What a point was made from, itself first, down to the learngene or the given model."""
    chain: list[JobSpec] = [job]
    if job.base is not job:
        chain += [job.base] if job.bank is None else [job.bank, job.base]
    for part in chain:  # grows while it is read: what each was made from
        chain += [need for need in part.needs if need not in chain]
    return [{"kind": part.kind, "id": part.id, "label": part.label} for part in chain]
