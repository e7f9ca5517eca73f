"""How steps are computed: micro-batches, recomputed and compiled blocks give the gradients of the plain step."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from fine_core.data.registry import load_dataset
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize, count_parameters
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.precision import autocast, check_precision, products_in
from tests.unit.test_dit import randomized
from trainables.specs.base import TrainingSpec
from trainables.training.batches import DenoisingBatches, DistillingBatches
from trainables.training.computing import Computing, StepPlan, agreed_plan, dense_models, prepare, restore, step_plan
from trainables.training.context import LocalContext
from trainables.training.loop import loss_of, train
from trainables.training.memory import activations, predicted_peak_bytes
from trainables.training.phase import Phase, PhaseTrainer

CPU = torch.device("cpu")
SIZE = ModelSize(depth=3, width=32, num_heads=2)
CONFIG = DiTConfig(size=SIZE, input_size=8, patch_size=2, in_channels=1, num_classes=10)
TRAINING = TrainingSpec(steps=6, batch_size=12, lr=1e-3)
MEASURED = Path(__file__).parents[2] / "benchmarks/results/nvidia-h200-2026-11-27.json"


def model(kind: str):
    torch.manual_seed(1)
    if kind == "dense":
        return randomized(CONFIG, seed=1)
    factorized = FactorizedDiT(CONFIG, rank=16, nested_widths=(16,))
    for name, parameter in factorized.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05) if "sigma" not in name else None
    return factorized


def batches(**changes) -> DenoisingBatches:
    values = {"null_label": 10, "seed": 0, "device": CPU, **changes}
    return DenoisingBatches(load_dataset("digits", "train"), TRAINING, **values)


def gradients(kind: str, plan: StepPlan, *, source=None, options=None) -> dict[str, torch.Tensor]:
    """Gradients of one step's loss, by parameter."""
    source = batches() if source is None else source
    trainer = PhaseTrainer(
        model(kind), Phase(name="x", steps=6, lr=0.0), TRAINING, LocalContext("unused"), skips_parameters=False, plan=plan
    )
    batch = source.batch(0)
    trainer._backward(loss_of(trainer, source.teacher), batch, batch.images, options or {})
    found = {name: p.grad.clone() for name, p in trainer.trainable.items() if p.grad is not None}
    restore(trainer.model)
    return found


PLAIN = StepPlan(micro_batch=12, recomputes=False, compiles=False)
PLANS = {
    "micro-batches": replace(PLAIN, micro_batch=4),
    "micro-batches that do not divide": replace(PLAIN, micro_batch=5),
    "one at a time": replace(PLAIN, micro_batch=1),
    "recomputed": replace(PLAIN, recomputes=True),
    "recomputed micro-batches": replace(PLAIN, micro_batch=4, recomputes=True),
}


def agree(found, expected, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * max(gradient.norm(), 1e-6), name


@pytest.mark.parametrize("kind", ["dense", "factorized", "factorized, nested"])
@pytest.mark.parametrize("name", PLANS)
def test_gradients_are_those_of_the_plain_step(kind, name):
    options = {"width": 16} if "nested" in kind else {}
    kind = kind.partition(",")[0]
    agree(gradients(kind, PLANS[name], options=options), gradients(kind, PLAIN, options=options), 3e-6)


@pytest.mark.parametrize("name", ["micro-batches", "one at a time"])
def test_samples_that_follow_a_teacher_may_lie_in_any_micro_batch(name):
    source = DistillingBatches(denoising=batches(), teacher=randomized(CONFIG, seed=2).eval(), teacher_weight=0.5)
    agree(gradients("dense", PLANS[name], source=source), gradients("dense", PLAIN, source=source), 3e-6)


def test_a_factorized_model_is_rebuilt_once_a_step(monkeypatch):
    calls = []
    dense_state = FactorizedDiT.dense_state
    monkeypatch.setattr(FactorizedDiT, "dense_state", lambda self, width=None: calls.append(width) or dense_state(self, width))
    gradients("factorized", PLANS["one at a time"])
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "factorized"])
def test_compiled_blocks_give_the_same_gradients_without_a_graph_break(kind):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = gradients(kind, replace(PLAIN, compiles=True))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1, "one compilation, whatever the depth"
    assert not counters["graph_break"], counters["graph_break"]
    agree(compiled, gradients(kind, PLAIN), 2e-5)


def test_a_compilation_that_fails_is_done_without(monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler here"), None)

    plan = replace(PLAIN, compiles=True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", fails))
    trainer = PhaseTrainer(
        model("dense"), Phase(name="x", steps=6, lr=1e-3), TRAINING, LocalContext("unused"), skips_parameters=False, plan=plan
    )
    batch = batches().batch(0)
    loss = trainer.step(loss_of(trainer, None), batch, batch.images, {}, 0)
    assert loss.isfinite() and all(block._compiled_call_impl is None for block in trainer.model.blocks)


def test_out_of_memory_halves_what_is_taken_at_once_and_goes_on(tmp_path):
    class Small(LocalContext):
        pass

    class Fixed:
        phases = (Phase(name="x", steps=6, lr=1e-3),)
        skips_parameters = False

        def __init__(self, most: int) -> None:
            self.most = most

        def model_for(self, phase, previous):
            found = model("dense")
            forward = found.forward

            def limited(x, t, y):
                if len(x) > self.most:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return forward(x, t, y)

            found.forward = limited
            return found

        def forward_options(self, step):
            return {}

    def trained(most: int):
        run = Small(tmp_path / str(most))
        _, progress = train(Fixed(most), batches=batches(), training=TRAINING, run=run, checkpoint_every_steps=1)
        return [entry["train/loss"] for entry in progress.history]

    whole, halved = trained(12), trained(3)
    assert len(whole) == 6 and halved == pytest.approx(whole, rel=1e-4)
    with pytest.raises(torch.OutOfMemoryError):
        trained(0)


class Products(TorchDispatchMode):
    """The dtypes that reach products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "convolution") or "attention" in name:
            first = next(a for a in args if isinstance(a, torch.Tensor))
            self.dtypes.setdefault(name, set()).add(first.dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["dense", "factorized"])
def test_under_bf16_products_are_bf16_and_what_must_be_fp32_is(kind):
    found = model(kind)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 999.0]), torch.tensor([1, 2])
    with Products() as seen, autocast("bf16", CPU):
        output = found(x, t, y)
    attention = [dtypes for name, dtypes in seen.dtypes.items() if "attention" in name]
    assert attention and all(dtypes == {torch.bfloat16} for dtypes in attention)
    expected = {torch.bfloat16} if kind == "dense" else {torch.bfloat16, torch.float32}  # U Sigma V^T is fp32
    assert seen.dtypes["addmm"] == {torch.bfloat16}
    assert set.union(*(seen.dtypes[name] for name in ("mm", "bmm") if name in seen.dtypes), {torch.bfloat16}) == expected
    plain = found(x, t, y)
    assert output.dtype in (torch.bfloat16, torch.float32)
    assert (output.float() - plain).norm() < 0.03 * plain.norm(), "rounding alone"
    output.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in found.parameters() if p.grad is not None)


def test_a_resumed_training_is_an_uninterrupted_one_in_micro_batches_of_bf16(tmp_path):
    class Recipe:
        phases = (Phase(name="x", steps=6, lr=1e-3),)
        skips_parameters = False

        def model_for(self, phase, previous):
            return model("dense")

        def forward_options(self, step):
            return {}

    def trained(name: str, stops: tuple[int, ...]):
        run = LocalContext(tmp_path / name)
        run.computing = Computing(micro_batch=4, activation_checkpointing="on")
        training = replace(TRAINING, precision="bf16")
        for stop in (*stops, None):
            found, _ = train(Recipe(), batches=batches(), training=training, run=run, checkpoint_every_steps=2, until_step=stop)
        return found.state_dict()

    once, twice = trained("once", ()), trained("twice", (2, 4))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_predicted_peaks_are_those_that_a_gpu_had():
    rows = json.loads(MEASURED.read_text())["bare_training_step"]["rows"]
    plain = [row for row in rows if not row["compiled"] and row["precision"] in ("fp32", "bf16")]
    assert len(plain) == 4
    for row in plain:
        predicted = predicted_peak_bytes(DIT_SIZES[row["size"]], images=row["batch"], precision=row["precision"])
        assert predicted == pytest.approx(row["peak_bytes"], rel=0.03), row


def test_xl_at_batch_32_in_bf16_with_recomputation_fits_24_gb():
    config = DIT_SIZES["DiT-XL/2"]
    peak = {flag: predicted_peak_bytes(config, images=32, precision="bf16", recomputes=flag) for flag in (True, False)}
    assert peak[True] < 0.9 * 24e9 < peak[False] * 1.1


def test_kept_activations_are_counted():
    config = replace(CONFIG, size=replace(SIZE, depth=4))
    full, recomputed = (activations(config, "fp32", recomputes=flag) for flag in (False, True))
    assert recomputed.per_image < full.per_image / 2 and full.fixed == 0
    other = activations(CONFIG, "fp32", recomputes=False)
    block = full.per_image - other.per_image
    tokens, width = CONFIG.num_tokens, SIZE.width
    assert 10 * tokens * width * 4 < block < 40 * tokens * width * 4
    base = DIT_SIZES["DiT-B/2"]
    frozen = predicted_peak_bytes(base, images=256, trained=0)
    assert predicted_peak_bytes(base, images=256) - frozen == 12 * count_parameters(base), "Adam's moments and the average"


def test_a_cpu_takes_the_whole_batch_and_compiles_nothing_unless_told():
    found = DiT(CONFIG)
    given = {"samples": 12, "flops": 1e30, "precision": "fp32", "device": CPU}
    assert step_plan(Computing(), found, **given) == PLAIN
    asked = Computing(micro_batch=4, activation_checkpointing="on", compile="on")
    assert step_plan(asked, found, **given) == StepPlan(micro_batch=4, recomputes=True, compiles=True)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (200e9, StepPlan(micro_batch=64, recomputes=False, compiles=True)),
        (30e9, StepPlan(micro_batch=32, recomputes=False, compiles=True)),
        (24e9, StepPlan(micro_batch=16, recomputes=False, compiles=True)),
        (20e9, StepPlan(micro_batch=64, recomputes=True, compiles=True)),
        (14e9, StepPlan(micro_batch=64, recomputes=True, compiles=True)),
        (1e9, StepPlan(micro_batch=16, recomputes=True, compiles=True)),
    ],
)
def test_a_gpu_takes_what_its_free_memory_holds(free, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    with torch.device("meta"):
        found = DiT(DIT_SIZES["DiT-XL/2"])
    plan = step_plan(Computing(), found, samples=64, flops=1e18, precision="bf16", device=torch.device("cuda"))
    assert plan == expected
    few = step_plan(Computing(micro_batch=8), found, samples=64, flops=1e12, precision="bf16", device=torch.device("cuda"))
    assert few.micro_batch == 8 and not few.compiles


def test_nothing_of_it_reaches_the_weights():
    for kind in ("dense", "factorized"):
        found = model(kind)
        names = list(found.state_dict())
        prepare(found, StepPlan(micro_batch=4, recomputes=True, compiles=True))
        assert list(found.state_dict()) == names and list(copy.deepcopy(found).state_dict()) == names
        restore(found)
        assert not any(dense.recomputes for dense in dense_models(found))


def test_precisions_that_a_device_lacks_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match="precision tf32 is of NVIDIA GPUs; choose fp32 or bf16 on a CPU"):
        check_precision("tf32", CPU)
    check_precision("bf16", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4 has no bf16; choose --precision fp32"):
        check_precision("bf16", torch.device("cuda"))


def test_products_are_as_before_afterwards():
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with products_in("tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
    with products_in("bf16"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before


class HostReads(TorchDispatchMode):
    """Operations whose result the host must wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"):
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("plan", [PLAIN, PLANS["recomputed micro-batches"]])
def test_a_step_never_waits_for_the_device(plan, learn_sigma):
    found = randomized(replace(CONFIG, learn_sigma=learn_sigma), seed=1)
    training = replace(TRAINING, grad_clip=1.0)
    phase = Phase(name="x", steps=6, lr=1e-3)
    trainer = PhaseTrainer(found, phase, training, LocalContext("unused"), skips_parameters=False, plan=plan)
    source, loss = batches(), loss_of(trainer, None)
    batch = source.batch(0)
    trainer.step(loss, batch, batch.images, {}, 0)  # what is made once
    batch = source.batch(1)
    images = batch.images
    with HostReads() as reads:
        trainer.step(loss, batch, images, {}, 1)
    assert reads.seen == []


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_gradients_of_attention_at_the_head_size_of_xl_are_those_of_plain_products(backend):
    """72 is no multiple of what kernels like best; here against softmax written out. On a GPU: benchmarks/gpu.py."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 16, 72, generator=generator).requires_grad_() for _ in range(3))
    with sdpa_kernel(backend):
        scaled_dot_product_attention(q, k, v).square().sum().backward()
    found = [tensor.grad.clone() for tensor in (q, k, v)]
    for tensor in (q, k, v):
        tensor.grad = None
    ((q @ k.transpose(2, 3) / 72**0.5).softmax(dim=-1) @ v).square().sum().backward()
    for gradient, tensor in zip(found, (q, k, v), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-4, atol=1e-5)


def test_workers_take_what_the_smallest_of_them_can_do():
    plans = [StepPlan(micro_batch=8, recomputes=False, compiles=True), StepPlan(micro_batch=4, recomputes=True, compiles=True)]
    assert agreed_plan(plans) == StepPlan(micro_batch=4, recomputes=True, compiles=True)


def test_a_resumed_training_sums_as_it_did_before(tmp_path):
    """Whatever memory is free when it starts again."""
    trainer = PhaseTrainer(
        model("dense"), Phase(name="x", steps=6, lr=1e-3), TRAINING, LocalContext("unused"), skips_parameters=False, plan=PLAIN
    )
    trainer.load_state(trainer.state() | {"computing": {"micro_batch": 3, "recomputes": True}})
    assert trainer.micro_batch == 3 and trainer.model.recomputes
    before = {name: value for name, value in trainer.state().items() if name != "computing"}
    trainer.load_state(before)  # of a version that kept nothing of it


def test_kept_gradients_count_where_micro_batches_follow():
    base = DIT_SIZES["DiT-B/2"]
    one = predicted_peak_bytes(base, images=64)
    assert predicted_peak_bytes(base, images=64, accumulates=True) - one == 4 * count_parameters(base)
