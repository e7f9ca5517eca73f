"""One conformance suite for every transfer method, and the published parameter counts."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from fine_core.data.registry import load_dataset
from fine_core.denoiser import LABEL
from fine_core.dit import DIT_SIZES, DiT, count_macs
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.loss_weights import min_snr_weights, p2_weights, signal_to_noise
from fine_core.parameterizations.ranks import levels_of
from fine_core.transfer.delta import load_delta, save_delta, trainable_tensors
from tests.tiny import (
    DyingContext,
    Killed,
    output,
    random_dit,
    random_learngene,
    same,
    tiny_base,
    tiny_config,
    tiny_options,
    tiny_transfer,
)
from trainables.jobs.transfer import TransferRecipe, served_macs
from trainables.methods import TRANSFER_METHODS, Start, TransferData, apply_transfer, resolve, transfer_method
from trainables.methods.difffit import DiffFitOptions
from trainables.specs.identity import from_json, to_json
from trainables.specs.options import from_values
from trainables.specs.transfers import TransferSpec
from trainables.training.context import LocalContext
from trainables.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture(params=TRANSFER_METHODS)
def method(request):
    return TRANSFER_METHODS[request.param]


@pytest.fixture(scope="module")
def base() -> DiT:
    return random_dit()


@pytest.fixture(scope="module")
def start() -> Start:
    return Start(learngene=random_learngene())


@pytest.fixture(scope="module")
def bank():
    return load_dataset("digits", "held_out")  # its labels must not matter


def prepared(method, base, start) -> DiT:
    model = copy.deepcopy(base)
    method.prepare(model, tiny_options(method.name), start)
    return model


def tune(method, base, start, bank, context, every: int = 3, **changes):
    job = tiny_transfer(method.name, **changes)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=CPU)
    recipe = TransferRecipe(job, base, start, CPU)
    batches = method.batches(job, data)
    return train(recipe, batches=batches, training=job.training, run=context, checkpoint_every_steps=every)[0]


def test_step_0_is_the_base_model(method, base, start):
    model = prepared(method, base, start)
    if method.exact_start:
        assert torch.equal(output(model), output(base))
    else:
        assert method.name in ("scratch", "vpt-deep") and not torch.equal(output(model), output(base))
    again = prepared(method, base, start)
    assert torch.equal(output(model), output(again)), "prepared twice alike"


def test_only_declared_parameters_change(method, base, start, bank, tmp_path):
    begun = prepared(method, base, start)
    tuned = tune(method, base, start, bank, LocalContext(tmp_path / "run"))
    declared = set(trainable_tensors(begun))
    assert declared and declared == set(trainable_tensors(tuned))
    before, after = begun.state_dict(), tuned.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == declared
    kept = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if name not in declared}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items() if name not in declared)


def test_delta_and_base_give_the_tuned_model_bit_for_bit(method, base, start, bank, tmp_path):
    tuned = tune(method, base, start, bank, LocalContext(tmp_path / "run"))
    save_delta(tuned, tmp_path / "delta.safetensors", {"method": method.name})
    restored = prepared(method, base, start)
    assert load_delta(restored, tmp_path / "delta.safetensors") == {"method": method.name}
    assert same(tuned, restored) and torch.equal(output(tuned), output(restored))


@pytest.mark.parametrize("after_reports", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(method, base, start, bank, after_reports, tmp_path):
    expected = tune(method, base, start, bank, LocalContext(tmp_path / "whole"), every=2)
    with pytest.raises(Killed):
        tune(method, base, start, bank, DyingContext(tmp_path / "killed", after_reports=after_reports), every=2)
    assert same(expected, tune(method, base, start, bank, LocalContext(tmp_path / "killed"), every=2))


def test_merged_equals_unmerged(method, base, start, bank, tmp_path):
    tuned = tune(method, base, start, bank, LocalContext(tmp_path / "run"))
    expected, before = output(tuned), copy.deepcopy(tuned)
    served = method.merge(tuned)
    assert (output(served) - expected).abs().max() < 1e-5 and same(before, tuned)
    assert (output(served) - output(base)).abs().max() > 1e-3, "something was learned"
    if method.mergeable:
        assert served.state_dict().keys() == base.state_dict().keys()
        assert served_macs(served, method) == count_macs(base.config)
    else:
        assert served_macs(served, method) > count_macs(base.config)


def test_counting_agrees_with_preparing(method, base, start):
    trained = sum(t.numel() for t in trainable_tensors(prepared(method, base, start)).values())
    assert method.count_trained(base.config, tiny_options(method.name), tiny_base().initialization) == trained


@pytest.mark.parametrize(("name", "weights"), [("p2", p2_weights), ("min-snr", min_snr_weights)])
def test_weighted_baselines_weigh_the_losses_of_their_timesteps(name, weights, base):
    job = tiny_transfer(name)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=None, base=base, device=CPU)
    batch = TRANSFER_METHODS[name].batches(job, data).batch(0)
    torch.testing.assert_close(batch.level_weights, weights(signal_to_noise(PARAMETERIZATIONS["ddpm"]))[levels_of(batch.ranks)])
    torch.testing.assert_close(batch.weights, torch.full((16,), 1 / 16))


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
    method, values = resolve(name)
    options = tuple(from_values(kind, values) for kind in method.options)
    assert method.count_trained(config, options) == COUNTS[name]


def test_all_biases_of_xl2():
    with torch.device("meta"):
        model = DiT(replace(DIT_SIZES["DiT-XL/2"], num_classes=101))
    assert sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias")) == 489_632


@pytest.mark.parametrize(("span", "blocks"), [(0.0, 0), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_scales_sit_on_the_first_blocks_and_start_at_one(span, blocks):
    model = apply_transfer("difffit", DiT(tiny_config(depth=4)), DiffFitOptions(gamma_span=span))
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


def test_frozen_parameters_reach_neither_optimizer_nor_average(base, start, tmp_path):
    method = TRANSFER_METHODS["difffit"]
    context = LocalContext(tmp_path / "run")
    tuned = tune(method, base, start, None, context)
    state = torch.load(context.folder / "state.pt", weights_only=True)
    assert set(state["ema"]) == set(state["trainable"]) == set(trainable_tensors(tuned))
    moments = [t for s in state["optimizer"]["state"].values() for t in s.values() if t.dim() > 0]
    assert sum(t.numel() for t in moments) == 2 * sum(t.numel() for t in trainable_tensors(tuned).values())


def same_training(first: str, second: str, base, start, bank, tmp_path, **changes) -> bool:
    plain = tune(TRANSFER_METHODS[first], base, start, bank, LocalContext(tmp_path / "a"))
    other = tune(TRANSFER_METHODS[second], base, start, bank, LocalContext(tmp_path / "b"), **changes)
    return same(plain, other)


@pytest.mark.parametrize("weighting", ["sampling", "loss"])
def test_no_weight_and_no_slope_is_exactly_full_fine_tuning(base, start, bank, weighting, tmp_path):
    off = {"schedule": "power:0", "retention_weight": 0.0, "weighting": weighting}
    assert same_training("full", "diff-tuning", base, start, bank, tmp_path, **off)


@pytest.mark.parametrize(
    "values",
    [{"schedule": "power:0"}, {"retention_weight": 0.0}, {"schedule": "power:0", "weighting": "loss"}],
)
def test_either_half_of_diff_tuning_changes_the_training(base, start, bank, values, tmp_path):
    assert not same_training("full", "diff-tuning", base, start, bank, tmp_path, **values)


def first_batch(name: str, bank, base, **values):
    job = tiny_transfer(name, **values)
    data = TransferData(target=load_dataset(job.dataset, "train"), bank=bank, base=base, device=CPU)
    return job, TRANSFER_METHODS[name].batches(job, data)


def test_bank_images_touch_only_the_null_row_of_the_label_table(bank, base):
    job, batches = first_batch("diff-tuning", bank, base)
    batch, rehearsed = batches.batch(0), round(16 * 0.25)
    labels = batch.conditions[LABEL]
    assert len(labels) == 16 and (labels[-rehearsed:] == 10).all()
    model = copy.deepcopy(base)
    part = slice(len(labels) - rehearsed, None)
    model(batch.images[part], levels_of(batch.ranks[part]), labels[part]).square().sum().backward()
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
    places = [torch.tensor([(batch.ranks == rank).nonzero().item() for rank in share.ranks]) for share in shares]
    assert torch.cat(places).sort().values.tolist() == list(range(16))
    losses, mean = torch.rand(16), 0.0
    for share, mine in zip(shares, places, strict=True):
        for name in ("images", "noise", "distilled", "level_weights"):
            assert torch.equal(getattr(share, name), getattr(batch, name)[mine])
        assert torch.equal(share.conditions[LABEL], batch.conditions[LABEL][mine])
        assert share.distilled.sum() == batch.distilled.sum() / 4, "the teacher's work is shared too"
        mean += (share.weights * losses[mine]).sum() / 4
    torch.testing.assert_close(mean, (batch.weights * losses).sum())


def test_shares_are_equal_whatever_does_not_divide(base):
    batch = first_batch("diff-tuning-kd", None, base)[1].batch(0)
    for number in (1, 2, 4, 8, 16):
        shares = [batch.share(rank, number) for rank in range(number)]
        assert {len(share.ranks) for share in shares} == {16 // number} == {len(share.images) for share in shares}
        assert torch.cat([share.ranks for share in shares]).sort().values.equal(batch.ranks.sort().values)


def test_weights_of_noise_levels_leave_the_learned_variance_alone():
    parameterization, t = PARAMETERIZATIONS["ddpm"], torch.tensor([5, 400])
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 1, 4, 4, generator=generator) * 2 - 1, torch.randn(2, 1, 4, 4, generator=generator)
    output, weights = torch.randn(2, 2, 4, 4, generator=generator), torch.tensor([0.0, 3.0])
    given = {"x0": x0, "x_t": parameterization.corrupt(x0, t, noise), "t": t, "noise": noise}
    whole = parameterization.losses(output, **given)
    simple = parameterization.losses(output[:, :1], **given)
    torch.testing.assert_close(parameterization.losses(output, **given, weights=weights), whole + (weights - 1) * simple)


def test_only_weighted_transfers_of_a_learned_variance_have_another_version():
    for method, learned, version in (("p2", True, 6), ("min-snr", True, 6), ("p2", False, 5), ("full", True, 5)):
        job = tiny_transfer(method)
        model = replace(job.base.model, learn_sigma=learned)
        job = replace(job, base=replace(job.base, model=model))
        assert job.version == version and from_json(TransferSpec, to_json(job)) == job
        with pytest.raises(ValueError, match="a transfer of another version"):
            from_json(TransferSpec, to_json(job) | {"version": 11 - version})


def test_timesteps_follow_the_schedule(bank, base):
    _, batches = first_batch("diff-tuning", bank, base)
    drawn = [levels_of(batches.batch(step).ranks) for step in range(400)]
    target, source = torch.cat([t[:12] for t in drawn]).double(), torch.cat([t[12:] for t in drawn]).double()
    assert abs(target.mean() - 666) < 12 and abs(source.mean() - 333) < 18
    assert (target < 100).double().mean() < 0.02


def test_as_loss_weights_the_timesteps_are_uniform(bank, base):
    _, batches = first_batch("diff-tuning", bank, base, weighting="loss")
    batch = batches.batch(0)
    t = levels_of(batch.ranks)
    weights = batch.weights * batch.level_weights
    torch.testing.assert_close(weights[:12], (t[:12] + 1).float() / 1000 / 12)
    torch.testing.assert_close(weights[12:], 0.5 * (1000 - t[12:]).float() / 1000 / 4)


def test_kd_follows_the_teacher_on_target_images(base):
    _, batches = first_batch("diff-tuning-kd", None, base)
    batch = batches.batch(0)
    assert same(batches.teacher, base) and batch.distilled.tolist() == [False] * 12 + [True] * 4
    target = load_dataset("digits-inverted", "train").images
    assert all((image == target).flatten(1).all(dim=1).any() for image in batch.images[12:])


def test_arms_switch_the_halves(bank, base):
    _, only_psi = first_batch("diff-tuning-psi", bank, base)
    assert len(only_psi.batch(0).ranks) == 16 and only_psi.teacher is None
    _, only_xi = first_batch("diff-tuning-xi", bank, base)
    drawn = torch.cat([levels_of(only_xi.batch(step).ranks[:12]) for step in range(300)]).double()
    assert abs(drawn.mean() - 499.5) < 20


def test_unknown_methods_and_missing_learngenes_are_named():
    with pytest.raises(ValueError, match="unknown transfer 'magic'; choose from full"):
        transfer_method("magic")
    with pytest.raises(ValueError, match="needs the learngene"):
        apply_transfer("fine-sigma", random_dit())


def test_a_delta_of_another_method_is_refused(base, start, tmp_path):
    save_delta(prepared(TRANSFER_METHODS["bitfit"], base, start), tmp_path / "d.safetensors", {})
    with pytest.raises(ValueError, match="does not fit the model"):
        load_delta(prepared(TRANSFER_METHODS["difffit"], base, start), tmp_path / "d.safetensors")


def test_fine_sigma_moves_along_the_learngenes_factors(start):
    """For a base that is U sigma V^T itself, FINE-sigma is training sigma."""
    from fine_core.initializers.fine.learngene import merge

    factorized = start.learngene.assemble(tiny_config().size)
    model = apply_transfer("fine-sigma", merge(factorized), start=start)
    delta = torch.randn(factorized.rank)
    with torch.no_grad():
        model.blocks[1].attn.qkv.delta_sigma.copy_(delta)
        factorized.sigma["16"]["qkv"][1] += delta
    expected = merge(factorized).blocks[1].attn.qkv.weight
    torch.testing.assert_close(TRANSFER_METHODS["fine-sigma"].merge(model).blocks[1].attn.qkv.weight, expected)
