"""A grid from a given model: what it is known by, its decomposition as a job, and the plan of its points."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from fine_core.checkpoints.native import load_model, save_model
from fine_core.checkpoints.public_dit import export_state_dict
from fine_core.initializers.fine.learngene import Learngene
from fine_core.initializers.matrices import BLOCK_MATRICES
from sweeps.command_line.options import preset_grid
from sweeps.planning.plan import plan_grid
from sweeps.size_grid import main
from tests.tiny import DyingContext, Killed, compute, random_dit, tiny_config, tiny_score
from trainables.jobs.inputs import publish_source, source_spec
from trainables.jobs.run import load_served
from trainables.specs.base import TrainingSpec
from trainables.specs.models import DecompositionSpec, LearngeneSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store
from trainables.training.batches import DenoisingBatches, DistillingBatches
from trainables.training.context import LocalContext


def decomposed(source, *, nested_widths=(8,), **changes) -> LearngeneSpec:
    """A learngene that starts from a decomposition."""
    shape = {"rank": 16, "nested_widths": nested_widths}
    spec = {
        "dataset": "digits",
        "model": source.model,
        "training": TrainingSpec(steps=6, batch_size=16),
        "decomposition": DecompositionSpec(source=source, als_sweeps=20, **shape),
        "teacher_weight": 0.5,
    }
    return LearngeneSpec(**{**spec, **shape, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with an extractor and an imported model."""
    store = Store(tmp_path_factory.mktemp("store"))
    compute(ExtractorSpec(dataset="digits"), store, LocalContext("unused"))
    model = random_dit(depth=3)
    publish_source(source_spec(model), model, store)
    return store


def test_a_source_is_known_by_its_weights(store, tmp_path):
    model = random_dit(depth=3)
    job = source_spec(model)
    assert load_model(store.fetch(job, MODEL_FILE), expect=job.model).config == model.config
    assert source_spec(random_dit(depth=3)).id == job.id
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[0, 0] += 1
    assert source_spec(model).id != job.id


def test_a_decomposition_is_scored_on_its_way_and_resumes_bit_for_bit(store, tmp_path):
    job = decomposed(source_spec(random_dit(depth=3)))
    decomposition, extractor = job.decomposition, ExtractorSpec(dataset="digits")
    assert job.needs == (decomposition, decomposition.source) and decomposition.needs == (decomposition.source,)
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    for copy in (whole, killed):
        model = random_dit(depth=3)
        publish_source(decomposition.source, model, copy)
        for needed in (extractor, decomposition):
            compute(needed, copy, LocalContext(tmp_path / "context-1"))
    compute(job, whole, LocalContext(tmp_path / "a"), every=2)
    with pytest.raises(Killed):
        compute(job, killed, DyingContext(tmp_path / "b", after_reports=2), every=2)
    compute(job, killed, LocalContext(tmp_path / "b"), every=2)
    assert whole.fetch(job, LEARNGENE_FILE).read_bytes() == killed.fetch(job, LEARNGENE_FILE).read_bytes()
    scores = [tiny_score(scored, extractor=extractor) for scored in (decomposition.source, decomposition, job)]
    assert [compute(score, whole, LocalContext(tmp_path / "context-2")).metrics["fid"] > 0 for score in scores] == [True] * 3
    metrics = whole.record(decomposition).metrics
    for matrix in BLOCK_MATRICES:
        assert 0 < metrics[f"error/{matrix}/als"] < metrics[f"error/{matrix}/joint_svd"] <= 1.5
    learngene = Learngene.load(whole.fetch(job, LEARNGENE_FILE))
    assert set(learngene.sigma) == {16, 8} and learngene.assemble(replace(job.model.size, depth=5)).config.size.depth == 5


def test_without_steps_the_learngene_is_the_decomposition(store, tmp_path):
    job = decomposed(source_spec(random_dit(depth=3)), training=TrainingSpec(steps=0, batch_size=16), nested_widths=())
    compute(job.decomposition, store, LocalContext(tmp_path / "context-3"))
    assert compute(job, store, LocalContext(tmp_path / "context-4"), every=2).metrics["train_s"] == 0
    trained, before = (
        compute(
            tiny_score(scored, extractor=ExtractorSpec(dataset="digits")), store, LocalContext(tmp_path / "context-5")
        ).metrics["fid"]
        for scored in (job, job.decomposition)
    )
    assert trained == before
    served, expected = (load_served(part, store).state_dict() for part in (job, job.decomposition))
    torch.testing.assert_close(served, expected)


def test_without_a_teacher_the_given_model_is_not_needed(store, tmp_path):
    job = decomposed(source_spec(random_dit(depth=3)), teacher_weight=0.0)
    assert job.needs == (job.decomposition,)
    compute(job.decomposition, store, LocalContext(tmp_path / "context-6"))
    record = compute(job, store, LocalContext(tmp_path / "context-7"), every=100)
    assert record.metrics["train_steps"] == 6 and list(record.made_from) == [job.decomposition.folder]


def test_the_distilled_half_follows_the_teacher_at_its_weight():
    from fine_core.data.registry import load_dataset

    training = TrainingSpec(steps=1, batch_size=10)
    denoising = DenoisingBatches(load_dataset("digits", "train"), training, null_label=10, seed=0, device=torch.device("cpu"))
    batch = DistillingBatches(denoising=denoising, teacher=random_dit(), teacher_weight=3.0).batch(0)
    assert batch.distilled.tolist() == [True] * 5 + [False] * 5
    assert batch.weights[batch.distilled].sum().item() == pytest.approx(3.0)
    assert batch.weights[~batch.distilled].sum().item() == pytest.approx(1.0)
    assert torch.equal(batch.images, denoising.batch(0).images)


FITTING = preset_grid("demo").options.changed({"auto-lg.blocks": 1, "fine.als_sweeps": 3})


def grid(**changes):
    source = source_spec(random_dit(depth=3, width=32))
    return replace(preset_grid("demo"), source=source, head_dim=8, depths=(2, 5), widths=(16, 32), transfer=None, **changes)


def test_a_grid_from_a_source_decomposes_it_once_and_takes_its_shape():
    plan = plan_grid(grid())
    (task,) = plan.stages["learngene"]
    learngene, (scores,) = task.job, plan.decompositions
    decomposition, given = (task.job for task in plan.stages["decompose"])
    assert (decomposition, scores.source) == (learngene.decomposition, given) and given.scored == decomposition.source
    for part in (learngene, decomposition):
        assert part.model == decomposition.source.model and part.nested_widths == (16,) and part.rank == 32
    assert (scores.decomposed.scored, scores.trained.scored) == (decomposition, learngene)
    assert [task.scores for task in (*plan.stages["decompose"], *plan.stages["learngene"])] == [
        (scores.decomposed,),
        (),
        (scores.trained,),
    ]
    assert [task.job.kind for task in plan.stages["source"]] == ["extractor"]
    assert list(plan.stages) == ["source", "decompose", "learngene", "base"]
    bases = [task.job for task in plan.stages["base"]]
    assert {job.size.depth for job in bases} == {2, 5}
    assert all(replace(job.model, size=learngene.model.size) == learngene.model for job in bases)
    assert plan.sweep_id != plan_grid(grid(options=preset_grid("demo").options.changed({"fine.als_sweeps": 3}))).sweep_id


def test_a_grid_may_name_widths_above_the_sources():
    plan = plan_grid(replace(grid(), widths=(32, 64), methods=("fine", "auto-lg", "ligo"), options=FITTING))
    made = {(p.model.initialization.name, p.model.size.width) for p in plan.points if p.model.base is p.model}
    assert made == {("fine", 32), ("fine", 64), ("auto-lg", 32), ("ligo", 32), ("ligo", 64)}
    assert "auto-lg L2-D64 is left out: it makes no width but the source's, 32" in plan.left_out
    (learngene,) = {p.model.initialization.learngene for p in plan.points if p.model.initialization.name == "fine"}
    assert learngene.model.size.width == 32 and learngene.nested_widths == ()


def invoke(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_the_same_weights_in_any_file_are_the_same_sweep(tmp_path):
    model = random_dit(depth=3)
    save_model(model, tmp_path / "ours.safetensors")
    export_state_dict(model, tmp_path / "flat.pt")
    options = ["--depths", "2", "--widths", "16", "--dry-run", "--storage-path", str(tmp_path / "store")]
    outputs = [
        invoke("--source", str(tmp_path / name), *more, *options)
        for name, more in (("ours.safetensors", []), ("flat.pt", ["--source-num-heads", "2"]))
    ]
    assert all(result.exit_code == 0 for result in outputs), outputs[1].output
    first, second = (result.output[result.output.index("Plan of") :] for result in outputs)
    assert first == second and "learngene of the imported model" in first
    assert "depth 3, width 16, 2 heads" in outputs[0].output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere.pt"], "no such file or folder: nowhere.pt"),
        (["--source", "{flat}"], "no published DiT has depth 3 and width 16; say its number of heads"),
        (["--source", "{ours}", "--dataset", "shapes"], "the source takes images of 1 x 8 x 8 and 10 classes, 'shapes' has 3"),
        (["--source", "{ours}", "--initializations", "auto-lg"], "auto-lg: blocks is 6; it must be 1 to 3, the source's depth"),
        (
            ["--source", "{ours}", "--initializations", "share", "--widths", "48"],
            "no size can be made: share L2-D48 is left out: it makes no width but the source's, 16",
        ),
        (["--source", "{ours}", "--widths", "16", "--teacher-weight", "-1"], "teacher_weight is -1.0; it must be 0 or more"),
        (["--source", "{ours}", "--widths", "16", "--als-sweeps", "-1"], "als_sweeps is -1; it must be 0 or more"),
    ],
)
def test_a_bad_source_is_one_line(arguments, message, tmp_path):
    assert tiny_config(depth=3).size.num_heads == 2
    model = random_dit(depth=3)
    save_model(model, tmp_path / "ours.safetensors")
    export_state_dict(model, tmp_path / "flat.pt")
    paths = {"ours": tmp_path / "ours.safetensors", "flat": tmp_path / "flat.pt"}
    result = invoke(*(part.format(**paths) for part in arguments), "--storage-path", str(tmp_path / "store"))
    errors = [line for line in result.output.splitlines() if line.startswith("error")]
    assert result.exit_code == 2 and len(errors) == 1 and message in errors[0], result.output
