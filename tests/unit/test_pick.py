"""From records back to specs, and the best point under a budget taken away: dense, for diffusers, and registered."""

import json
from dataclasses import asdict, replace

import mlflow
import pytest
import torch
from click.testing import CliRunner

from fine_core.checkpoints.diffusers_folder import load_diffusers, load_pipeline
from fine_core.checkpoints.native import load_model
from sweeps.pick import main
from sweeps.results.picking import candidates, card, on_dataset, pick
from tests.tiny import random_dit, tiny_bank, tiny_base, tiny_learngene, tiny_transfer
from trainables.jobs.inputs import source_spec
from trainables.jobs.run import run_job
from trainables.jobs.transfer import load_transferred
from trainables.specs.from_record import job_from_record
from trainables.specs.models import DecomposedLearngeneSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import CurveSpec, RungSpec
from trainables.storage.store import Store
from trainables.training.context import LocalContext

TARGET = "digits-inverted"


def specs():
    transfer, source = tiny_transfer("diff-tuning"), source_spec(random_dit(depth=3))
    common = {name: getattr(tiny_learngene(), name) for name in ("dataset", "model", "rank", "nested_widths", "training")}
    decomposed = DecomposedLearngeneSpec(
        **common, source=source, als_sweeps=3, teacher_weight=0.5, evaluation=transfer.evaluation, extractor=transfer.extractor
    )
    base = tiny_base("fine")
    from_source = replace(base, initialization=replace(base.initialization, learngene=decomposed))
    return [
        ExtractorSpec(dataset="digits"), tiny_learngene(), source, decomposed, base, tiny_base("scratch"), from_source,
        tiny_bank(base), transfer, tiny_transfer("difffit"), tiny_transfer("full", base=tiny_base("scratch")),
        RungSpec(transfer=transfer, step=2, evaluation=transfer.evaluation), CurveSpec(transfer=transfer, shares=(0.0, 0.5)),
    ]  # fmt: skip


@pytest.mark.parametrize("job", specs(), ids=lambda job: f"{job.kind} {job.id}")
def test_a_spec_comes_back_from_its_record(job):
    record = json.loads(json.dumps({"kind": job.kind, "id": job.id, "spec": asdict(job)}))
    assert job_from_record(record) == job
    assert job_from_record({**record, "id": "of another version"}) is None
    assert job_from_record({**record, "spec": {**record["spec"], "new": 1}}) is None


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Two seeds of a small transfer, one of a base model and of a transfer that cannot be merged."""
    store = Store(tmp_path_factory.mktemp("store"))
    second = replace(tiny_base("fine"), seed=1)
    jobs = [ExtractorSpec(dataset=name) for name in ("digits", TARGET)] + [tiny_learngene(), tiny_base("fine"), second]
    jobs += [tiny_transfer("difffit"), tiny_transfer("difffit", base=second, seed=1), tiny_transfer("full")]
    for job in [*jobs, tiny_transfer("adapter-parallel")]:
        run_job(job, store.location, LocalContext(f"{store.root}-pad/{job.id}"), checkpoint_every_steps=100)
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
    assert content["on_front_of_serve_bytes"] and content["protocol"] == best.records[0]["protocol"]
    assert [part["kind"] for part in content["lineage"]] == ["transfer", "trial", "learngene"]


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
    for model in (load_model(out / "model.safetensors"), load_diffusers(out / "diffusers")):
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True))
    pipeline = load_pipeline(out / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    assert pipeline([1], generator=generator, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)

    client = mlflow.MlflowClient(f"sqlite:///{store.root}/mlflow.db")
    (version,) = client.search_model_versions("name = 'tiny'")
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
    mixed = [replace(c, records=tuple({**r, "protocol": "another"} for r in c.records)) for c in found[:1]]
    with pytest.raises(ValueError, match="have 2 protocols, which cannot be compared"):
        on_dataset([*found, *mixed], found[0].jobs[0].dataset)
    result = CliRunner().invoke(main, ["--storage-path", str(tmp_path)])
    assert result.exit_code == 2 and "holds no scored point; run a sweep first" in result.output
