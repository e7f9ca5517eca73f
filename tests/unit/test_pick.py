"""The best point under a budget taken away: dense, for diffusers, and registered."""

import json
from dataclasses import replace

import mlflow
import pytest
import torch
from click.testing import CliRunner

from fine_core.checkpoints.diffusers_folder import load_diffusers, load_pipeline
from fine_core.checkpoints.native import load_model
from sweeps.pick import main
from sweeps.results.picking import candidates, card, on_dataset, pick
from tests.tiny import TINY_EVALUATION, compute, tiny_base, tiny_learngene, tiny_point, tiny_score, tiny_transfer
from trainables.jobs.transfer import load_transferred
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.store import Store
from trainables.training.context import LocalContext

TARGET = "digits-inverted"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Two seeds of a small transfer, one of a base model and of a transfer that cannot be merged."""
    store = Store(tmp_path_factory.mktemp("store"))
    second = replace(tiny_base("fine"), seed=1)
    models = [tiny_base("fine"), second, tiny_transfer("difffit"), tiny_transfer("difffit", base=second, seed=1)]
    points = [tiny_point(model) for model in (*models, tiny_transfer("full"), tiny_transfer("adapter-parallel"))]
    jobs = [ExtractorSpec(dataset=name) for name in ("digits", TARGET)] + [tiny_learngene()]
    for job in [*jobs, *(job for point in points for job in (point.model, *point.all_scores))]:
        compute(job, store, LocalContext(f"{store.root}-pad/{job.id}"), every=100)
    return store


def test_seeds_are_one_candidate_and_what_cannot_be_merged_is_none(store):
    found = candidates(store)
    assert sorted((c.jobs[0].label, len(c.jobs)) for c in found) == [
        ("difffit L2-D16 from fine seed 0", 2),
        ("fine L2-D16 seed 0", 2),
        ("full L2-D16 from fine seed 0", 1),
    ]
    on_target = on_dataset(found, TARGET)
    assert {c.jobs[0].method for c in on_target} == {"difffit", "full"}
    best = pick(on_target, {"serve_bytes": 10**6})
    assert best.fid == min(c.fid for c in on_target)
    content = card(best, on_target)
    assert content["on_front_of_serve_bytes"] and content["protocol"] == str(best.protocol)
    forgotten = store.record(tiny_point(best.jobs[0]).forgetting).metrics["fid"]
    assert content["source_fid"] == forgotten != content["fid"], "the scores of forgetting are no points of their own"
    assert [part["kind"] for part in content["lineage"]] == ["transfer", "base", "learngene"]


def test_a_model_scored_again_for_other_metrics_is_one_point_with_all_of_them(store):
    job = tiny_transfer("full")
    asked = tiny_score(job, evaluation=replace(TINY_EVALUATION, metrics=("fid", "mind")))
    compute(asked, store, LocalContext(f"{store.root}-pad/{asked.id}"))
    found = on_dataset(candidates(store), TARGET)
    (full,) = (candidate for candidate in found if candidate.jobs[0] == job)
    content, expected = card(full, found), store.record(asked).metrics
    assert content["seeds"] == [0] and content["fid"] == pytest.approx(expected["fid"], rel=1e-6)
    assert content["mind"] == expected["mind"] and "kid" in content and "density" not in content


def invoke(store: Store, *arguments: str):
    return CliRunner().invoke(main, ["--storage-path", store.location, *arguments])


def test_the_picked_model_is_dense_sampled_by_diffusers_and_registered(store, tmp_path):
    out = tmp_path / "picked"
    result = invoke(store, "--dataset", TARGET, "--max-serve-bytes", "64kB", "--out", str(out), "--name", "tiny")
    assert result.exit_code == 0, result.output
    content = json.loads((out / "card.json").read_text())
    assert "picked from 2 points" in result.output and "registered as tiny version 1" in result.output
    assert (out / "model.safetensors").stat().st_size == content["costs"]["serve_bytes"] <= 64_000

    job = tiny_transfer(content["method"])
    expected = load_transferred(job, store)
    for model in (load_model(out / "model.safetensors"), load_diffusers(out / "diffusers")[0]):
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True))
    pipeline = load_pipeline(out / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    assert pipeline([1], generator=generator, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)

    client = mlflow.MlflowClient(f"sqlite:///{store.root}/mlflow.db")
    (version,) = client.search_model_versions("name = 'tiny'")
    logged = client.get_run(version.run_id).data.metrics
    assert {name: content[name] for name in logged} == logged and {"fid", "kid", "recall"} <= logged.keys()
    assert version.tags["protocol"] == json.dumps(content["protocol"])
    folder = mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "got"))
    files = {path.suffix for path in type(out)(folder).rglob("*") if path.is_file()}
    assert ".safetensors" in files and not files & {".pkl", ".pt", ".bin"}
    assert "registered as tiny version 2" in invoke(store, "--dataset", TARGET, "--out", f"{out}2", "--name", "tiny").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--max-serve-bytes", "1kB", "--dataset", TARGET],
            "no point keeps to serve_bytes <= 1,000; the least is serve_bytes 63,",
        ),
        (["--max-params", "5", "--dataset", TARGET], "no point keeps to params <= 5; the least is params 15,204"),
        (["--max-gmacs", "1e-9", "--dataset", TARGET], "no point keeps to gmacs <= 1e-09"),
        ([], "points on several datasets; choose one of digits, digits-inverted: --dataset"),
        (["--dataset", "cats"], "no point on 'cats'; there are points on digits, digits-inverted"),
        (["--dataset", TARGET, "--out", "/tmp"], "/tmp exists already; name another folder with --out"),
        (["--max-serve-bytes", "much"], "'much' is not a number of bytes"),
    ],
)
def test_bad_input_is_one_line(store, arguments, message):
    result = invoke(store, *arguments)
    assert result.exit_code == 2 and result.output.count("\n") == 1 and message in result.output, result.output


def test_protocols_are_not_mixed_and_an_empty_store_is_named(store, tmp_path):
    found = candidates(store)
    dataset, protocol = found[0].jobs[0].dataset, replace(found[0].protocol, num_samples=12345)
    other = replace(found[0].results[0], score_record=replace(found[0].results[0].score_record, protocol=protocol))
    mixed = [*found, replace(found[0], results=(other,))]
    with pytest.raises(ValueError, match="have 2 protocols, which cannot be compared"):
        on_dataset(mixed, dataset)
    assert on_dataset(mixed, dataset, "12345 samples") == mixed[-1:], "unless one is chosen by a part of it"
    with pytest.raises(ValueError, match="no protocol on .* contains 'magic'"):
        on_dataset(mixed, dataset, "magic")
    result = CliRunner().invoke(main, ["--storage-path", str(tmp_path)])
    assert result.exit_code == 2 and "holds no scored point; run a sweep first" in result.output
