"""The knowledge bank and the chain-of-forgetting curve."""

import pytest
import torch

from fine_core.checkpoints.native import CheckpointError
from fine_core.denoiser import LABEL
from fine_core.sampling.draw import Tail, sample_images
from fine_core.sampling.sampler import SamplerSpec
from fine_core.transfer.bank import bank_labels, load_bank, save_bank
from sweeps.planning.names import MethodNames
from sweeps.planning.points import ForgettingCurve
from sweeps.results.curves import curve_rows
from tests.searches import record_of
from tests.tiny import (
    DyingContext,
    Killed,
    compute,
    random_dit,
    tiny_bank,
    tiny_base,
    tiny_config,
    tiny_learngene,
    tiny_score,
    tiny_transfer,
)
from trainables.jobs.run import run_job
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.files import BANK_FILE
from trainables.storage.store import Store
from trainables.training.context import LocalContext


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_a_bank_keeps_images_and_latents_with_their_protocol(dtype, tmp_path):
    images = torch.randint(256, (7, 3, 4, 4)).to(dtype)
    save_bank(tmp_path / "bank.parquet", images, protocol={"sampler": "ddim"})
    bank, protocol = load_bank(tmp_path / "bank.parquet", null_label=10)
    expected = images.float() / 127.5 - 1 if dtype == torch.uint8 else images.float()
    assert torch.equal(bank.images, expected) and bank.labels.tolist() == [10] * 7 and protocol == {"sampler": "ddim"}


def test_a_bank_of_bytes_takes_about_its_bytes(tmp_path):
    save_bank(tmp_path / "bank.parquet", torch.randint(256, (1000, 1, 8, 8)).to(torch.uint8), protocol={})
    assert (tmp_path / "bank.parquet").stat().st_size < 1.1 * 64_000 + 2000


def test_floats_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="uint8 images or float16 latents"):
        save_bank(tmp_path / "bank.parquet", torch.rand(2, 1, 4, 4), protocol={})
    (tmp_path / "bank.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(CheckpointError, match="not a readable knowledge bank"):
        load_bank(tmp_path / "bank.parquet", null_label=0)


def test_bank_labels_are_uniform_and_fixed_by_the_seed():
    labels = bank_labels(10_000, 10, seed=0)
    assert torch.equal(labels, bank_labels(10_000, 10, seed=0)) and labels.bincount(minlength=10).min() > 850


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-inverted"), tiny_learngene(), tiny_base("fine")]
    for job in (*needs, tiny_transfer("full")):
        compute(job, str(root), LocalContext(root / "pad" / job.id))
    return Store(root)


def bank_bytes(store: Store) -> bytes:
    return store.fetch(tiny_bank(tiny_base("fine")), BANK_FILE).read_bytes()


def test_a_bank_killed_and_resumed_is_the_uninterrupted_one(store, tmp_path):
    job = tiny_bank(tiny_base("fine"))
    with pytest.raises(Killed):
        compute(job, store, DyingContext(tmp_path / "pad", after_reports=2))
    context = LocalContext(tmp_path / "pad")
    compute(job, store, context)
    assert [report["step"] for report in context.reports if "step" in report] == [24, 30], "what was drawn is kept"
    resumed = bank_bytes(store)
    store.delete(job.folder)
    compute(job, store, LocalContext(tmp_path / "again"))
    assert bank_bytes(store) == resumed
    metrics = store.record(job).metrics
    assert metrics["bank_images"] == 30 and metrics["sampling_s"] > 0
    _, protocol = load_bank(store.fetch(job, BANK_FILE), null_label=10)
    assert protocol["base"] == tiny_base("fine").id and protocol["sampler"]["guidance_scale"] == 1.5


class OneOfTwo(LocalContext):
    """A worker of two; what the other has to say is put into `others`, and heard by it in turn."""

    def __init__(self, folder, rank: int, said: dict[int, list]) -> None:
        super().__init__(folder)
        self.rank, self.num_workers, self.said = rank, 2, said
        self.heard = 0

    def agreed(self, item):
        return item  # both see the same store

    def gather(self, item):
        self.said[self.rank].append(item)
        other = self.said[1 - self.rank]
        theirs = other[self.heard] if self.heard < len(other) else None
        self.heard += 1
        return [item, theirs] if self.rank == 0 else [theirs, item]


def test_two_workers_draw_the_bank_that_one_does(store, tmp_path):
    job = tiny_bank(tiny_base("fine"))
    compute(job, store, LocalContext(tmp_path / "pad"))
    alone = bank_bytes(store)
    store.delete(job.folder)
    said: dict[int, list] = {0: [], 1: []}
    second = OneOfTwo(tmp_path / "second", 1, said)  # speaks first
    run_job(job, store, second, checkpoint_every_steps=4)
    compute(job, store, OneOfTwo(tmp_path / "first", 0, said))
    assert bank_bytes(store) == alone


def draw(model, tail=None):
    generator = torch.Generator().manual_seed(0)
    return sample_images(model, {LABEL: torch.tensor([1, 2])}, SamplerSpec(sampling_steps=6), generator=generator, tail=tail)


def test_the_tail_takes_its_share_of_the_steps_from_the_data_end():
    calls = []

    class Recording(torch.nn.Module):
        def __init__(self, name: str, model) -> None:
            super().__init__()
            self.name, self.model, self.config = name, model, model.config

        def forward(self, x, t, y):
            calls.append((self.name, t[0].item(), y.tolist()))
            return self.model(x, t, y)

    model, base = Recording("tuned", random_dit()), Recording("base", random_dit(depth=1))
    draw(model, Tail(model=base, steps=2))
    assert [name for name, _, _ in calls] == ["tuned"] * 4 + ["base"] * 2
    assert calls[-1][1] == min(t for _, t, _ in calls) and calls[-1][2] == [10, 10] and calls[0][2] == [1, 2]


def test_no_tail_is_the_tuned_model_and_a_whole_one_the_base_without_labels():
    model, base = random_dit(), random_dit(depth=1)
    assert torch.equal(draw(model), draw(model, Tail(model=base, steps=0)))
    null = {LABEL: torch.full((2,), tiny_config().num_classes)}
    generator = torch.Generator().manual_seed(0)
    expected = sample_images(base, null, SamplerSpec(sampling_steps=6), generator=generator)
    assert torch.equal(expected, draw(model, Tail(model=base, steps=6)))


def test_a_curve_starts_at_the_transfers_own_score(store, tmp_path):
    transfer = tiny_transfer("full")
    scores = tuple(tiny_score(transfer, replaced_steps=steps) for steps in (0, 1, 2))
    assert scores[0] == tiny_score(transfer), "which is not taken twice"
    for score in scores:
        compute(score, store, LocalContext(tmp_path / "pad"))
    curve = ForgettingCurve(transfer=transfer, scores=scores)
    rows = curve_rows([curve], MethodNames([transfer]), store)
    assert [row["share"] for row in rows] == [0.0, 0.5, 1.0] and len({row["fid"] for row in rows}) == 3
    assert len({row["protocol"] for row in rows}) == 1, "the curve's own, without its steps"
    assert "last 2 by the base" in str(store.record(scores[2]).protocol)


def test_curves_of_different_bases_are_not_taken_for_seeds(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "empty").mkdir()
    jobs = [tiny_transfer("full"), tiny_transfer("full", seed=1), tiny_transfer("full", base=tiny_base("scratch"))]
    curves = [ForgettingCurve(transfer=job, scores=(tiny_score(job),)) for job in jobs]
    for curve, fid in zip(curves, (1.0, 3.0, 9.0), strict=True):
        store.publish(curve.scores[0], tmp_path / "empty", record_of(curve.scores[0], {"fid": fid}))
    rows = {row["method"]: row for row in curve_rows(curves, MethodNames(jobs), store)}
    assert (rows["full from fine"]["fid"], rows["full from fine"]["num_seeds"]) == (2.0, 2)
    assert rows["full from scratch"]["fid"] == 9.0 and rows["full from scratch"]["fid_stderr"] is None


def test_more_steps_than_there_are_cannot_be_replaced():
    with pytest.raises(ValueError, match="replaced_steps is 3; it must be 0 to 2"):
        tiny_score(tiny_transfer("full"), replaced_steps=3)
