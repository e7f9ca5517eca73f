"""Scores by what a user brings along: extractors, references and VAEs by path, and scoring again without training again."""

import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from fine_core.checkpoints.native import CheckpointError, save_model
from fine_core.data.by_path import resolve
from fine_core.data.latents import VAE_WEIGHTS, decode, encode, load_vae, write_latents
from fine_core.data.readers.base import Wanted
from fine_core.data.source import LatentInfo
from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.evaluation.adm import save_samples_npz
from fine_core.evaluation.extractors.given import load_given_extractor, weights_sha256
from fine_core.evaluation.metrics.asked import MetricUnavailable
from fine_core.evaluation.reference import Reference
from fine_core.sampling.sampler import SamplerSpec
from fine_core.transfer.bank import load_bank
from sweeps.command_line.options import grid_from, grid_options
from sweeps.display.plan import estimated_left_s
from sweeps.planning.costs import core_s, scoring_macs, total_macs
from sweeps.planning.plan import Plan, find_jobs, plan_grid, plan_tasks
from sweeps.results.points import point_result
from sweeps.size_grid import main
from tests.pictures import extractor_file, image_folder, vae_folder
from tests.tiny import TINY_EVALUATION, compute, random_dit, randomize, tiny_base, tiny_point, tiny_score, tiny_transfer
from trainables.jobs import run as run_module
from trainables.jobs.inputs import file_spec, publish_file, publish_source, publish_vae, source_spec, vae_spec
from trainables.jobs.run import run_task
from trainables.jobs.scorer import load_scorer
from trainables.specs.base import TrainingSpec
from trainables.specs.models import BaseModelSpec, GivenSpec, ScratchSpec
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.scores import null_label
from trainables.specs.tasks import Task
from trainables.specs.transfers import BankSpec
from trainables.storage.files import BANK_FILE, MODEL_FILE, REFERENCE_FILE
from trainables.storage.record import Record
from trainables.storage.store import Store
from trainables.training.context import LocalContext

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image folder, an extractor file, a VAE folder and latents of the images."""
    root = tmp_path_factory.mktemp("place")
    image_folder(root / "images", classes=3, per_class=8)
    extractor_file(root)
    vae_folder(root)
    return root


def run(job, store: Store) -> Record:
    return compute(job, store, LocalContext(f"{store.root}/contexts/{job.id}"))


def extractor_of(place, dataset: str, **fields) -> GivenExtractorSpec:
    weights = weights_sha256(load_given_extractor(place / "means.pt", format="torchscript"))
    named = {"extractor": file_spec(place / "means.pt"), "format": "torchscript", "weights_sha256": weights}
    return GivenExtractorSpec(dataset=dataset, **named, **fields)


def images(place, size: int = 8) -> str:
    return resolve(f"imagefolder:{place}/images", wanted=Wanted(image_size=size), flips=True)


def trial_on(dataset: str, *, channels: int, size: int, **changes) -> BaseModelSpec:
    shape = ModelSize(depth=1, width=16, num_heads=2)
    config = DiTConfig(size=shape, input_size=size, patch_size=2, in_channels=channels, num_classes=3, learn_sigma=False)
    spec = {"initialization": ScratchSpec(), "model": config, "dataset": dataset, "seed": 0}
    spec |= {"training": TrainingSpec(steps=4, batch_size=8)}
    return BaseModelSpec(**{**spec, **changes})


def test_images_by_path_are_learned_and_scored_by_an_extractor_by_path(place, tmp_path):
    store, name = Store(tmp_path), images(place)
    extractor = extractor_of(place, name)
    publish_file(extractor.extractor, place / "means.pt", store)
    run(extractor, store)
    reference = Reference.load(store.fetch(extractor, REFERENCE_FILE))
    assert reference.pooled.num_samples == 24 and reference.features.shape == (24, 6)
    base = trial_on(name, channels=3, size=8)
    run(base, store)
    forbidden = replace(TINY_EVALUATION, metrics=("fid", "sfid"))
    with pytest.raises(MetricUnavailable, match="sfid needs spatial features, which the extractor does not give"):
        run(tiny_score(base, extractor=extractor, evaluation=forbidden), store)
    record = run(tiny_score(base, extractor=extractor), store)
    metrics = record.metrics
    assert {"fid", "kid", "precision", "recall"} <= set(metrics) and not {"sfid", "inception_score"} & set(metrics)
    assert record.protocol.extractor.startswith("means.pt@")
    assert str(record.protocol).endswith(f"reference {name.replace(',flips', '')}:pool")


def test_a_reference_file_takes_the_place_of_the_images(place, tmp_path):
    store, name = Store(tmp_path / "store"), images(place)
    save_samples_npz(tmp_path / "reference.npz", torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8))
    extractor = extractor_of(place, name, reference=file_spec(tmp_path / "reference.npz"))
    publish_file(extractor.extractor, place / "means.pt", store)
    publish_file(extractor.reference, tmp_path / "reference.npz", store)
    run(extractor, store)
    scorer = load_scorer(extractor, store, CPU)
    assert scorer.reference.pooled.num_samples == 30 and scorer.reference_name.startswith("reference.npz@")


@pytest.fixture(scope="module")
def latents(place):
    """The name of a dataset of latents."""
    from fine_core.data.registry import load_dataset

    name = resolve(f"imagefolder:{place}/images", wanted=Wanted(image_size=16), flips=False)
    data = load_dataset(name, "pool")
    vae, job = load_vae(place / "vae" / "config.json", place / "vae" / VAE_WEIGHTS), vae_spec(place / "vae")
    info = LatentInfo(vae_sha256=job.sha256, scale=0.5, data=name, image_size=16)
    moments = encode(vae, data.take(torch.arange(len(data))), flips=True)
    (place / "latents").mkdir()
    store = Store(place / "latents")
    write_latents(store.filesystem, f"{store.root}/part.parquet", moments, data.labels, info)
    return resolve(f"parquet:{place}/latents", wanted=Wanted(image_size=1), flips=True)


def test_what_models_of_latents_draw_is_decoded_and_compared_with_the_images(place, latents, tmp_path):
    store, vae = Store(tmp_path), vae_spec(place / "vae")
    extractor = extractor_of(place, latents, vae=vae)
    extractor.check_data()
    publish_file(extractor.extractor, place / "means.pt", store)
    publish_vae(vae, place / "vae", store)
    run(extractor, store)
    scorer = load_scorer(extractor, store, CPU)
    assert scorer.reference.pooled.num_samples == 24 and f"VAE@{vae.sha256[:12]}" in scorer.extractor_name
    drawn = torch.randn(5, 4, 8, 8)
    their = AutoencoderKL.from_pretrained(place / "vae").eval()
    with torch.no_grad():
        expected = (127.5 * their.decode(drawn / 0.5).sample + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal(scorer.to_images(drawn), expected) and torch.equal(decode(their, drawn, scale=0.5), expected)
    base = trial_on(latents, channels=4, size=8)
    run(base, store)
    assert run(tiny_score(base, extractor=extractor), store).metrics["fid"] > 0
    bank = BankSpec(base=base, num_images=10, sampler=SamplerSpec(sampling_steps=2), batch_size=8)
    run(bank, store)
    kept, _ = load_bank(store.fetch(bank, BANK_FILE), null_label=3)
    assert kept.images.shape == (10, 4, 8, 8) and kept.images.unique().numel() > 300, "latents, not bytes"


def test_latents_equal_those_of_diffusers_and_keep_the_mirror_images(place, latents):
    from fine_core.data.registry import load_dataset

    data, pixels = (
        load_dataset(latents, "train"),
        load_dataset(resolve(f"imagefolder:{place}/images", wanted=Wanted(image_size=16), flips=False), "train"),
    )
    their = AutoencoderKL.from_pretrained(place / "vae").eval()
    with torch.no_grad():
        posterior = their.encode(pixels.take(torch.arange(4)).flip(-1)).latent_dist
    stored = data.reader.read(torch.arange(4)).float()
    assert torch.allclose(stored[:, 1, 0], posterior.mean, atol=2e-3) and torch.allclose(
        stored[:, 1, 1], posterior.std, atol=2e-3
    )


def test_a_given_model_is_a_base_as_it_is(tmp_path):
    store, model = Store(tmp_path), random_dit(depth=2)
    source = source_spec(model)
    publish_source(source, model, store)
    run(ExtractorSpec(dataset="digits"), store)
    job = replace(
        tiny_base(), initialization=GivenSpec(source=source), model=source.model, training=TrainingSpec(steps=0, batch_size=16)
    )
    record = run(job, store)
    assert record.metrics["train_steps"] == 0 and record.history == []
    stored = load_file(store.fetch(job, MODEL_FILE))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_another_protocol_scores_again_and_trains_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    point = tiny_point(tiny_transfer("diff-tuning"))
    transferred, learngene = point.model, point.model.base.initialization.learngene
    for dataset in ("digits", "digits-inverted"):
        run(ExtractorSpec(dataset=dataset), store)
    for job in (learngene, transferred.base, transferred.bank, transferred, *point.all_scores):
        run(job, store)
    finer = replace(TINY_EVALUATION, num_samples=30, sampler=SamplerSpec(sampling_steps=3))
    again = replace(
        point,
        score=replace(point.score, evaluation=finer),
        forgetting=replace(point.forgetting, evaluation=null_label(finer)),
        forgetting_before=replace(point.forgetting_before, evaluation=null_label(finer)),
    )
    plan = Plan(tasks=plan_tasks([again.task], scores=[again.forgetting_before]))
    found = find_jobs(plan, store)
    assert {found.state(task) for task in (*plan.stages["base"], *plan.stages["transfer"])} == {"to score"}
    missing = [job for job in plan.jobs if job.id not in found.finished]
    assert set(missing) == set(again.all_scores), "the models are there"
    assert estimated_left_s(plan, found) == core_s(again.all_scores)
    assert total_macs(missing) == scoring_macs(plan.jobs) > 0
    stored = {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.suffix in (".safetensors", ".parquet")}
    forbidden = lambda *a, **k: pytest.fail("trained or drawn again")  # noqa: E731
    for name in ("base.train", "transfer.train", "bank.draw_batch", "learngene.train"):
        monkeypatch.setattr(f"trainables.jobs.{name}", forbidden)
    for task in plan.tasks:
        run_task(task, store.location, LocalContext(tmp_path / "context"), checkpoint_every_steps=4)
    kept = {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.suffix in (".safetensors", ".parquet")}
    assert kept == stored, "no weights are stored twice, and none are touched"
    old, new = point_result(point, store), point_result(again, store)
    assert old.model_record == new.model_record and old.protocol != new.protocol


def test_a_worker_that_has_made_a_model_scores_it_without_loading_it(tmp_path, monkeypatch):
    store, base = Store(tmp_path), tiny_base("scratch")
    run(ExtractorSpec(dataset="digits"), store)
    task = Task(job=base, scores=(tiny_score(base), tiny_score(base, evaluation=null_label(TINY_EVALUATION))))
    loaded: list[str] = []
    load = run_module.load_served
    monkeypatch.setattr(run_module, "load_served", lambda job, store: loaded.append(job.id) or load(job, store))
    run_task(task, store.location, LocalContext(tmp_path / "context"), checkpoint_every_steps=4)
    assert loaded == []
    in_memory = store.record(task.scores[0])
    store.discard(task.scores[0])
    run_task(task, store.location, LocalContext(tmp_path / "context"), checkpoint_every_steps=4)
    assert loaded == [base.id] and store.record(task.scores[0]).metrics["fid"] == in_memory.metrics["fid"]


def test_an_extractor_is_loaded_once_per_process_and_again_when_its_bytes_change(tmp_path, monkeypatch):
    store, job = Store(tmp_path), ExtractorSpec(dataset="digits")
    run(job, store)
    first = load_scorer(job, store, CPU)
    assert load_scorer(job, store, CPU) is first
    other = replace(job, seed=1)
    run(other, store)
    folder = tmp_path / "other-bytes"
    shutil.copytree(tmp_path / other.folder, folder, ignore=shutil.ignore_patterns("record*"))
    store.publish(job, folder, store.record(job))
    again = load_scorer(job, store, CPU)
    assert again is not first and again.extractor_name != first.extractor_name


def invoke(*arguments: str):
    return CliRunner().invoke(main, [*arguments, "--dry-run"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagefolder:{place}/images"], "Name Inception's weights with --inception-weights PATH"),
        (["--dataset", "imagefolder:{place}/nowhere", "--extractor", "{means}"], "no such folder"),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{place}/none.pt"], "no such file"),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{place}/images"], "suffix ''; an extractor is one of"),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{means}", "--image-size", "0"], "image_size is 0"),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{means}", "--image-size", "15"], "patch"),
        (["--dataset", "imagefolder:{place}/images", "--inception-weights", "{means}"], "has a sha256 of"),
        (["--dataset", "imagefolder:{place}/images", "--inception-weights", "{means}", "--extractor", "{means}"], "not both"),
        (["--dataset", "digits", "--reference", "{means}"], "--reference needs an extractor"),
        (["--dataset", "{latents}", "--extractor", "{means}"], "holds latents; name the VAE that decodes them: --vae"),
        (["--dataset", "{latents}", "--extractor", "{means}", "--vae", "{other}"], "was encoded by another VAE"),
        (
            ["--dataset", "{latents}", "--extractor", "{means}", "--vae", "{place}/images"],
            "no AutoencoderKL as diffusers saves it",
        ),
        (
            ["--dataset", "{latents}", "--extractor", "{means}", "--vae", "{vae}", "--target", "imagefolder:{place}/images"],
            "has 3 channels, the base model 4",
        ),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{means}", "--source", "{narrow}"], "and 2 classes"),
        (["--dataset", "imagefolder:{place}/images", "--extractor", "{means}", "--vae", "{vae}"], "--vae is for latents"),
        (
            ["--dataset", "imagefolder:{place}/images", "--extractor", "{means}", "--transfer", "full"],
            "needs a target",
        ),
        (["--image-size", "16"], "--image-size is of images by path"),
        (["--methods", "given,fine"], "initialization 'given' is the model of --source; name one"),
    ],
)
def test_bad_input_is_one_line(place, latents, tmp_path, arguments, message):
    torch.manual_seed(5)
    if not (place / "other-vae").exists():
        vae = AutoencoderKL.from_pretrained(place / "vae")
        randomize(vae).save_pretrained(place / "other-vae")
    config = DiTConfig(
        size=ModelSize(depth=1, width=16, num_heads=2),
        input_size=32,
        patch_size=2,
        in_channels=3,
        num_classes=2,
        learn_sigma=False,
    )
    save_model(DiT(config), place / "narrow.safetensors")
    names = {"place": place, "means": place / "means.pt", "vae": place / "vae", "other": place / "other-vae"}
    names |= {"latents": f"parquet:{place}/latents", "narrow": place / "narrow.safetensors"}
    given = [argument.format(**names) for argument in arguments]
    result = invoke(*given, "--storage-path", str(tmp_path / "store"))
    errors = [line for line in result.output.splitlines() if line.startswith("error")]
    assert result.exit_code == 2 and len(errors) == 1 and message in errors[0], result.output


def test_a_vae_of_an_older_diffusers_is_loaded_too(place, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(place / "vae" / VAE_WEIGHTS)
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    shutil.copytree(place / "vae", tmp_path / "vae")
    save_file(renamed, tmp_path / "vae" / VAE_WEIGHTS, metadata={"format": "pt"})
    vae = load_vae(tmp_path / "vae" / "config.json", tmp_path / "vae" / VAE_WEIGHTS)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in vae.state_dict().items())


def test_code_is_known_by_the_weights_that_it_leads_to(place, tmp_path):
    name = images(place)
    code = "import torch\ndef build():\n    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))\n"
    code += f"    net = torch.nn.Sequential(Bytes(), net)\n    weights = torch.load('{tmp_path}/w.pt', weights_only=True)\n"
    code += "    net.load_state_dict(weights)\n    return net\n"
    code += "class Bytes(torch.nn.Module):\n    def forward(self, x):\n        return x.float()\n"
    (tmp_path / "code.py").write_text(code)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save({"1.1.weight": torch.randn(4, 192), "1.1.bias": torch.zeros(4)}, tmp_path / "w.pt")
        extractor = load_given_extractor(tmp_path / "code.py", format="python")
        fields = {"extractor": file_spec(tmp_path / "code.py"), "format": "python"}
        job = GivenExtractorSpec(dataset=name, weights_sha256=weights_sha256(extractor), **fields)
        store = Store(tmp_path / f"store-{seed}")
        publish_file(job.extractor, tmp_path / "code.py", store)
        if seed == 0:
            first, first_store = job, store
            run(job, store)
    assert first.id != job.id and first.quoted != job.quoted
    with pytest.raises(CheckpointError, match="has other weights here than where the sweep was planned"):
        load_scorer(first, first_store, CPU)


def test_the_ladder_of_scores_changes_nothing_that_is_made():
    plans = [preset_plan("--eval", level) for level in ("quick", "standard", "paper")]
    made = [sorted(job.id for job in plan.jobs if job.kind != "score") for plan in plans]
    assert len(made[0]) > 20 and made[0] == made[1] == made[2]
    scores = [{point.score.id for point in plan.points} for plan in plans]
    assert len(set.union(*scores)) == 3 * len(scores[0])


def preset_plan(*arguments: str):
    command = click.command()(grid_options()(lambda **options: None))
    return plan_grid(grid_from(command.make_context("grid", list(arguments)).params))
