"""One conformance suite for every transfer method, and the published parameter counts."""

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch

from fine_core.checkpoints import load_model
from fine_core.data import load_dataset
from fine_core.delta import load_delta, save_delta, trainable_tensors
from fine_core.dit import DIT_SIZES, DiT, count_macs
from fine_core.ledger import file_bytes
from fine_core.loss_weights import min_snr_weights, p2_weights
from sweeps.planning import predicted_serve_bytes, predicted_served_parameters
from tests.tiny import (
    DyingContext,
    Killed,
    random_dit,
    random_learngene,
    same,
    tiny_bank,
    tiny_config,
    tiny_learngene,
    tiny_rehearsal,
    tiny_transfer,
    tiny_trial,
)
from trainables import jobs, scoring
from trainables.context import LocalContext
from trainables.files import DELTA_FILE, MODEL_FILE
from trainables.jobs import run_job
from trainables.loop import train
from trainables.methods import TRANSFER_METHODS, MethodOptions, TransferData, apply_transfer, transfer_method
from trainables.scoring import score_model
from trainables.spec import ExtractorSpec, RungSpec
from trainables.store import Store
from trainables.transfer import TransferRecipe, load_transferred, served_macs

CPU = torch.device("cpu")


@pytest.fixture(params=TRANSFER_METHODS)
def method(request):
    return TRANSFER_METHODS[request.param]


@pytest.fixture(scope="module")
def base() -> DiT:
    return random_dit()


@pytest.fixture(scope="module")
def options() -> MethodOptions:
    return MethodOptions(learngene=random_learngene())


@pytest.fixture(scope="module")
def bank():
    return load_dataset("digits", "held_out")  # its labels must not matter


def prepared(method, base, options) -> DiT:
    model = copy.deepcopy(base)
    method.prepare(model, options)
    return model


def output(model, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 1, 8, 8, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([0, 10, 400, 700, 999]), torch.tensor([0, 3, 9, 10, 1]))


def tune(method, base, options, bank, context, every: int = 3, **changes):
    job = tiny_transfer(method.name, **changes)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=CPU)
    recipe = TransferRecipe(job, base, options, CPU)
    batches = method.batches(job, data)
    return train(recipe, batches=batches, training=job.training, run=context, checkpoint_every_steps=every)[0]


def test_step_0_is_the_base_model(method, base, options):
    model = prepared(method, base, options)
    if method.exact_start:
        assert torch.equal(output(model), output(base))
    else:
        assert method.name in ("scratch", "vpt-deep") and not torch.equal(output(model), output(base))
    again = prepared(method, base, options)
    assert torch.equal(output(model), output(again)), "prepared twice alike"


def test_only_declared_parameters_change(method, base, options, bank, tmp_path):
    start = prepared(method, base, options)
    tuned = tune(method, base, options, bank, LocalContext(tmp_path / "run"))
    declared = set(trainable_tensors(start))
    assert declared and declared == set(trainable_tensors(tuned))
    before, after = start.state_dict(), tuned.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == declared
    kept = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if name not in declared}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items() if name not in declared)


def test_delta_and_base_give_the_tuned_model_bit_for_bit(method, base, options, bank, tmp_path):
    tuned = tune(method, base, options, bank, LocalContext(tmp_path / "run"))
    save_delta(tuned, tmp_path / "delta.safetensors", {"method": method.name})
    restored = prepared(method, base, options)
    assert load_delta(restored, tmp_path / "delta.safetensors") == {"method": method.name}
    assert same(tuned, restored) and torch.equal(output(tuned), output(restored))


@pytest.mark.parametrize("after_reports", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(method, base, options, bank, after_reports, tmp_path):
    expected = tune(method, base, options, bank, LocalContext(tmp_path / "whole"), every=2)
    with pytest.raises(Killed):
        tune(method, base, options, bank, DyingContext(tmp_path / "killed", after_reports=after_reports), every=2)
    assert same(expected, tune(method, base, options, bank, LocalContext(tmp_path / "killed"), every=2))


def test_merged_equals_unmerged(method, base, options, bank, tmp_path):
    tuned = tune(method, base, options, bank, LocalContext(tmp_path / "run"))
    expected, before = output(tuned), copy.deepcopy(tuned)
    served = method.merge(tuned)
    assert (output(served) - expected).abs().max() < 1e-5 and same(before, tuned)
    assert (output(served) - output(base)).abs().max() > 1e-3, "something was learned"
    if method.mergeable:
        assert served.state_dict().keys() == base.state_dict().keys()
        assert served_macs(served, method) == count_macs(base.config)
    else:
        assert served_macs(served, method) > count_macs(base.config)


def test_counting_agrees_with_preparing(method, base, options):
    trained = sum(t.numel() for t in trainable_tensors(prepared(method, base, options)).values())
    assert method.count_trained(base.config, gamma_span=None, rank=options.learngene.rank) == trained


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with a base model, its bank and both extractors."""
    root = tmp_path_factory.mktemp("store")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-inverted"), tiny_learngene()]
    needs += [tiny_trial("fine"), tiny_bank(tiny_trial("fine"))]
    for job in needs:
        run_job(job, str(root), LocalContext(root / "pad" / job.id), checkpoint_every_steps=4)
    return Store(root)


def test_a_transfer_leaves_a_delta_a_record_and_the_ledgers_bytes(method, store, tmp_path):
    job = tiny_transfer(method.name)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    record = store.read_record(job)
    metrics = record["metrics"]
    assert metrics["serve_bytes"] == file_bytes(store.fetch(job, DELTA_FILE)) == record["files"][DELTA_FILE]["bytes"]
    assert metrics["params_trainable"] == method.count_trained(job.model, gamma_span=None, rank=16)
    assert 0 <= metrics["serve_bytes"] - 4 * metrics["params_trainable"] < 8000, "tensors and a header, nothing else"
    assert predicted_serve_bytes(job) == metrics["serve_bytes"] and predicted_serve_bytes(job.base) == base_bytes(store, job)
    assert predicted_served_parameters(job) == metrics["params_total"]
    assert {"fid", "kid", "train_s", "forgetting/source_fid", "forgetting/tuned_distance"} <= set(metrics)
    assert ("forgetting/distance" in metrics) == method.mergeable
    assert metrics["forgetting/tuned_distance"] > 0 and "digits-inverted:pool" in record["protocol"]
    assert ("bank_bytes" in metrics) == method.uses_bank
    served = load_transferred(job, store)
    assert sum(p.numel() for p in served.parameters()) == metrics["params_total"]


def base_bytes(store: Store, job) -> int:
    return store.read_record(job.base)["metrics"]["serve_bytes"]


@pytest.mark.parametrize("name", ["diff-tuning", "difffit", "vpt-deep"])
def test_a_transfer_that_goes_on_from_its_rungs_is_that_which_never_stopped(name, store, tmp_path):
    job = tiny_transfer(name, steps=7)
    proxy = replace(job.evaluation, num_samples=10)
    rungs = [RungSpec(transfer=job, step=step, evaluation=proxy) for step in (2, 5)]
    other = Store(shutil.copytree(store.root, tmp_path / "stepwise"))
    pad = tmp_path / "stepwise-pad"  # one training, one pad
    for part in (*rungs, job):
        assert part.run_id == job.id
        run_job(part, other.location, LocalContext(pad), checkpoint_every_steps=3)
    whole = replace(job)
    run_job(whole, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    assert other.fetch(job, DELTA_FILE).read_bytes() == store.fetch(whole, DELTA_FILE).read_bytes()
    at_once, in_parts = store.read_record(whole), other.read_record(job)
    assert in_parts["metrics"]["fid"] == at_once["metrics"]["fid"]
    assert [entry["step"] for entry in in_parts["history"]] == [2, 3, 5, 6, 7]
    for rung in rungs:
        record = other.read_record(rung)
        assert "| 10 samples |" in record["protocol"] and math.isfinite(record["metrics"]["fid"]) and record["files"] == {}
    short = replace(job, training=replace(job.training, steps=2))
    run_job(short, store.location, LocalContext(tmp_path / "short"), checkpoint_every_steps=3)
    short_proxy = score_model(load_transferred(short, store), proxy, job.extractor, store=store, seed=0, run=LocalContext("x"))
    assert other.read_record(rungs[0])["metrics"]["fid"] == short_proxy.fid, "a rung scores the averaged weights of its step"


def test_a_rung_is_not_scored_with_later_weights(store, tmp_path):
    """Its record may be lost when its training has gone on."""
    job = tiny_transfer("full", steps=7)
    rung = RungSpec(transfer=job, step=2, evaluation=replace(job.evaluation, num_samples=10))
    fids = []
    for folder, first in (("fresh", None), ("after", 6)):
        other = Store(shutil.copytree(store.root, tmp_path / folder))
        context = LocalContext(tmp_path / f"{folder}-pad")
        if first is not None:
            run_job(replace(rung, step=first), other.location, context, checkpoint_every_steps=3)
        run_job(rung, other.location, context, checkpoint_every_steps=3)
        fids.append(other.read_record(rung)["metrics"]["fid"])
    assert fids[0] == fids[1]


@pytest.mark.parametrize("step", [0, 6, 7])
def test_a_rung_lies_within_its_transfer(step):
    job = tiny_transfer("full", steps=6)
    with pytest.raises(ValueError, match=f"a rung at step {step} is not within the transfer's 6 steps"):
        RungSpec(transfer=job, step=step, evaluation=job.evaluation)


def test_no_steps_give_the_base_model_and_no_distance(store, tmp_path):
    job = tiny_transfer("full", steps=0)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    metrics = store.read_record(job)["metrics"]
    assert metrics["forgetting/distance"] == metrics["forgetting/tuned_distance"] == 0
    assert metrics["forgetting/source_fid"] == metrics["forgetting/source_fid_before"], "nothing is forgotten"
    base = load_model(store.fetch(job.base, MODEL_FILE))
    assert torch.equal(output(load_transferred(job, store)), output(base))


@pytest.mark.parametrize("name", ["full", "difffit"])
def test_distances_are_those_of_the_weights(name, store, tmp_path):
    job = tiny_transfer(name)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    metrics = store.read_record(job)["metrics"]
    base, served = load_model(store.fetch(job.base, MODEL_FILE)), load_transferred(job, store)
    pairs = zip(base.parameters(), served.parameters(), strict=True)
    assert metrics["forgetting/distance"] == pytest.approx(sum((a - b).square().sum().item() for a, b in pairs), rel=1e-4)
    number = metrics["params_trainable"]
    assert metrics["forgetting/tuned_distance_per_parameter"] == metrics["forgetting/tuned_distance"] / number
    alike = metrics["forgetting/distance"] == pytest.approx(metrics["forgetting/tuned_distance"], rel=1e-4)
    assert alike == (name == "full"), "DiffFit's own coordinates are not the weights"


def test_the_source_is_scored_under_the_null_label(store, monkeypatch):
    drawn = []
    monkeypatch.setattr(scoring, "sample_batch", lambda model, labels, *a, **k: drawn.append(labels) or torch.randint(
        256, (len(labels), 1, 8, 8)).to(torch.uint8))  # fmt: skip
    scores = scoring.score_source(random_dit(), tiny_trial("fine"), store, LocalContext("unused"))
    assert (torch.cat(drawn) == 10).all() and "null label" in scores.protocol and "digits:pool" in scores.protocol


@pytest.mark.parametrize(("name", "weights"), [("p2", p2_weights), ("min-snr", min_snr_weights)])
def test_weighted_baselines_weigh_the_losses_of_their_timesteps(name, weights, base):
    job = tiny_transfer(name)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=None, base=base, device=CPU)
    batch = TRANSFER_METHODS[name].batches(job, data).batch(0)
    torch.testing.assert_close(batch.weights, weights()[batch.t] / 16)


def test_a_finished_transfer_is_not_computed_again(store, monkeypatch, tmp_path):
    job = tiny_transfer("full")
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    monkeypatch.setattr(jobs, "run_transfer", lambda *a: pytest.fail("computed again"))
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)


# DiffFit, arXiv 2304.06648, table 1: DiT-XL/2 with 101 classes, no position table.
COUNTS = {
    "full": 673_799_072,
    "difffit": 703_904,
    "bitfit": 607_136,
    "lora-r8": 1_149_696,
    "lora-r16": 2_181_888,
    "adapter-parallel": 4_280_320,
    "adapter-sequential": 4_280_320,
    "vpt-deep": 2_816_672,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_on_xl2_with_101_classes(name):
    config = replace(DIT_SIZES["DiT-XL/2"], num_classes=101)
    assert transfer_method(name).count_trained(config, gamma_span=None, rank=None) == COUNTS[name]


def test_all_biases_of_xl2():
    with torch.device("meta"):
        model = DiT(replace(DIT_SIZES["DiT-XL/2"], num_classes=101))
    assert sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias")) == 489_632


@pytest.mark.parametrize(("span", "blocks"), [(0.0, 0), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_scales_sit_on_the_first_blocks_and_start_at_one(span, blocks):
    model = apply_transfer("difffit", DiT(tiny_config(depth=4)), MethodOptions(gamma_span=span))
    gammas = {name: p for name, p in model.named_parameters() if name.endswith("gamma")}
    assert {name.split(".")[1] for name in gammas} == {str(i) for i in range(blocks)}
    assert all(torch.equal(p, torch.ones_like(p)) for p in gammas.values())
    assert sum(p.numel() for p in gammas.values()) == 6 * 16 * blocks


def test_gamma_equals_scaling_the_weights_by_hand():
    base = random_dit()
    model = apply_transfer("difffit", copy.deepcopy(base))
    with torch.no_grad():
        block, expected = model.blocks[0], base.blocks[0]
        for module, linear in ((block.attn.qkv, expected.attn.qkv), (block.mlp, expected.mlp.fc2)):
            module.gamma.copy_(torch.linspace(0.5, 2, len(module.gamma)))
            linear.weight *= module.gamma[:, None]
            linear.bias *= module.gamma
    torch.testing.assert_close(output(model), output(base), rtol=1e-5, atol=1e-5)


def test_frozen_parameters_reach_neither_optimizer_nor_average(base, options, tmp_path):
    method = TRANSFER_METHODS["difffit"]
    context = LocalContext(tmp_path / "run")
    tuned = tune(method, base, options, None, context)
    state = torch.load(context.folder / "state.pt", weights_only=True)
    assert set(state["ema"]) == set(state["trainable"]) == set(trainable_tensors(tuned))
    moments = [t for s in state["optimizer"]["state"].values() for t in s.values() if t.dim() > 0]
    assert sum(t.numel() for t in moments) == 2 * sum(t.numel() for t in trainable_tensors(tuned).values())


def same_training(first: str, second: str, base, options, bank, tmp_path, **changes) -> bool:
    plain = tune(TRANSFER_METHODS[first], base, options, bank, LocalContext(tmp_path / "a"))
    other = tune(TRANSFER_METHODS[second], base, options, bank, LocalContext(tmp_path / "b"), **changes)
    return same(plain, other)


@pytest.mark.parametrize("weighting", ["sampling", "loss"])
def test_no_weight_and_no_slope_is_exactly_full_fine_tuning(base, options, bank, weighting, tmp_path):
    off = tiny_rehearsal("power:0", retention_weight=0.0, weighting=weighting)
    assert same_training("full", "diff-tuning", base, options, bank, tmp_path, rehearsal=off)


@pytest.mark.parametrize(
    "rehearsal",
    [tiny_rehearsal("power:0"), tiny_rehearsal("linear", retention_weight=0.0), tiny_rehearsal("power:0", weighting="loss")],
)
def test_either_half_of_diff_tuning_changes_the_training(base, options, bank, rehearsal, tmp_path):
    assert not same_training("full", "diff-tuning", base, options, bank, tmp_path, rehearsal=rehearsal)


def first_batch(name: str, bank, base, **rehearsal):
    job = tiny_transfer(name, rehearsal=tiny_rehearsal(**rehearsal))
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=CPU)
    return job, TRANSFER_METHODS[name].batches(job, data)


def test_bank_images_touch_only_the_null_row_of_the_label_table(bank, base):
    job, batches = first_batch("diff-tuning", bank, base)
    batch, rehearsed = batches.batch(0), round(16 * 0.25)
    assert len(batch.labels) == 16 and (batch.labels[-rehearsed:] == 10).all()
    model = copy.deepcopy(base)
    part = slice(len(batch.labels) - rehearsed, None)
    model(batch.images[part], batch.t[part], batch.labels[part]).square().sum().backward()
    gradient = model.y_embedder.embedding_table.weight.grad
    assert (gradient[:10] == 0).all() and (gradient[10] != 0).any()


def test_the_batch_is_mean_target_loss_plus_weighted_mean_bank_loss(bank, base):
    _, batches = first_batch("diff-tuning", bank, base, retention_weight=0.3)
    weights = batches.batch(0).weights
    assert math.isclose(weights[:12].sum(), 1.0, rel_tol=1e-5) and math.isclose(weights[12:].sum(), 0.3, rel_tol=1e-5)


def test_workers_share_a_batch_without_overlap_and_their_mean_is_its_loss(bank, base):
    _, batches = first_batch("diff-tuning-kd", bank, base)
    batch = batches.batch(3)
    shares = [batch.share(rank, 4) for rank in range(4)]
    for name in ("images", "labels", "t", "noise", "taught"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name))
    losses = torch.rand(16)
    mean = sum((share.weights * part).sum() for share, part in zip(shares, losses.split(4), strict=True)) / 4
    torch.testing.assert_close(mean, (batch.weights * losses).sum())


def test_timesteps_follow_the_schedule(bank, base):
    _, batches = first_batch("diff-tuning", bank, base)
    drawn = [batches.batch(step).t for step in range(400)]
    target, source = torch.cat([t[:12] for t in drawn]).double(), torch.cat([t[12:] for t in drawn]).double()
    assert abs(target.mean() - 666) < 12 and abs(source.mean() - 333) < 18
    assert (target < 100).double().mean() < 0.02


def test_as_loss_weights_the_timesteps_are_uniform(bank, base):
    _, batches = first_batch("diff-tuning", bank, base, weighting="loss")
    batch = batches.batch(0)
    torch.testing.assert_close(batch.weights[:12], (batch.t[:12] + 1).float() / 1000 / 12)
    torch.testing.assert_close(batch.weights[12:], 0.5 * (1000 - batch.t[12:]).float() / 1000 / 4)


def test_kd_follows_the_teacher_on_target_images(base):
    _, batches = first_batch("diff-tuning-kd", None, base)
    batch = batches.batch(0)
    assert same(batches.teacher, base) and batch.taught.tolist() == [False] * 12 + [True] * 4
    target = load_dataset("digits-inverted", "train").images
    assert all((image == target).flatten(1).all(dim=1).any() for image in batch.images[12:])


def test_arms_switch_the_halves(bank, base):
    _, only_psi = first_batch("diff-tuning-psi", bank, base)
    assert len(only_psi.batch(0).labels) == 16 and only_psi.teacher is None
    _, only_xi = first_batch("diff-tuning-xi", bank, base)
    drawn = torch.cat([only_xi.batch(step).t[:12] for step in range(300)]).double()
    assert abs(drawn.mean() - 499.5) < 20


def test_unknown_methods_and_missing_learngenes_are_named():
    with pytest.raises(ValueError, match="unknown transfer 'magic'; choose from full"):
        transfer_method("magic")
    with pytest.raises(ValueError, match="needs the learngene"):
        apply_transfer("fine-sigma", random_dit())


def test_a_delta_of_another_method_is_refused(base, options, tmp_path):
    save_delta(prepared(TRANSFER_METHODS["bitfit"], base, options), tmp_path / "d.safetensors", {})
    with pytest.raises(ValueError, match="does not fit the model"):
        load_delta(prepared(TRANSFER_METHODS["difffit"], base, options), tmp_path / "d.safetensors")


def test_fine_sigma_moves_along_the_learngenes_factors(options):
    """For a base that is U sigma V^T itself, FINE-sigma is training sigma."""
    from fine_core.learngene import merge

    factorized = options.learngene.assemble(tiny_config().size)
    model = apply_transfer("fine-sigma", merge(factorized), options)
    delta = torch.randn(factorized.rank)
    with torch.no_grad():
        model.blocks[1].attn.qkv.delta_sigma.copy_(delta)
        factorized.sigma["16"]["qkv"][1] += delta
    expected = merge(factorized).blocks[1].attn.qkv.weight
    torch.testing.assert_close(TRANSFER_METHODS["fine-sigma"].merge(model).blocks[1].attn.qkv.weight, expected)
