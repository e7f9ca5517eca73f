"""The knowledge bank and the chain-of-forgetting curve."""

import pytest
import torch

from fine_core.checkpoints.native import CheckpointError
from fine_core.sampling.draw import Tail, sample_images
from fine_core.sampling.sampler import SamplerSpec
from fine_core.transfer.bank import bank_labels, load_bank, save_bank
from sweeps.planning.names import MethodNames
from sweeps.results.curves import curve_rows
from tests.tiny import DyingContext, Killed, random_dit, tiny_bank, tiny_base, tiny_config, tiny_learngene, tiny_transfer
from trainables.jobs.run import run_job
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import CurveSpec
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
        run_job(job, str(root), LocalContext(root / "pad" / job.id), checkpoint_every_steps=4)
    return Store(root)


def bank_bytes(store: Store) -> bytes:
    return store.fetch(tiny_bank(tiny_base("fine")), BANK_FILE).read_bytes()


def test_a_bank_killed_and_resumed_is_the_uninterrupted_one(store, tmp_path):
    job = tiny_bank(tiny_base("fine"))
    with pytest.raises(Killed):
        run_job(job, store.location, DyingContext(tmp_path / "pad", after_reports=2), checkpoint_every_steps=4)
    context = LocalContext(tmp_path / "pad")
    run_job(job, store.location, context, checkpoint_every_steps=4)
    assert [report["step"] for report in context.reports if "step" in report] == [24, 30], "what was drawn is kept"
    resumed = bank_bytes(store)
    store.delete(job.folder)
    run_job(job, store.location, LocalContext(tmp_path / "again"), checkpoint_every_steps=4)
    assert bank_bytes(store) == resumed
    record = store.read_record(job)
    assert record["metrics"]["bank_images"] == 30 and record["metrics"]["sampling_s"] > 0
    _, protocol = load_bank(store.fetch(job, BANK_FILE), null_label=10)
    assert protocol["base"] == tiny_base("fine").id and protocol["sampler"]["guidance_scale"] == 1.5


class OneOfTwo(LocalContext):
    """A worker of two; what the other has to say is put into `others`, and heard by it in turn."""

    def __init__(self, folder, rank: int, said: dict[int, list]) -> None:
        super().__init__(folder)
        self.rank, self.num_workers, self.said = rank, 2, said
        self.heard = 0

    def gather(self, item):
        self.said[self.rank].append(item)
        other = self.said[1 - self.rank]
        theirs = other[self.heard] if self.heard < len(other) else None
        self.heard += 1
        return [item, theirs] if self.rank == 0 else [theirs, item]


def test_two_workers_draw_the_bank_that_one_does(store, tmp_path):
    job = tiny_bank(tiny_base("fine"))
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=4)
    alone = bank_bytes(store)
    store.delete(job.folder)
    said: dict[int, list] = {0: [], 1: []}
    second = OneOfTwo(tmp_path / "second", 1, said)  # speaks first
    run_job(job, store.location, second, checkpoint_every_steps=4)
    run_job(job, store.location, OneOfTwo(tmp_path / "first", 0, said), checkpoint_every_steps=4)
    assert bank_bytes(store) == alone


def draw(model, tail=None):
    generator = torch.Generator().manual_seed(0)
    return sample_images(model, torch.tensor([1, 2]), SamplerSpec(sampling_steps=6), generator=generator, tail=tail)


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
    null = torch.full((2,), tiny_config().num_classes)
    generator = torch.Generator().manual_seed(0)
    expected = sample_images(base, null, SamplerSpec(sampling_steps=6), generator=generator)
    assert torch.equal(expected, draw(model, Tail(model=base, steps=6)))


def test_a_curve_starts_at_the_transfers_own_score(store, tmp_path):
    job = CurveSpec(transfer=tiny_transfer("full"), shares=(0.0, 0.1, 0.5, 1.0))
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=4)
    record = store.read_record(job)
    assert record["shares"] == [0.0, 0.5, 1.0], "of 2 steps, 0.1 are none"
    assert len(set(record["fids"])) == 3
    assert record["fids"][0] == store.read_record(tiny_transfer("full"))["metrics"]["fid"]


def test_curves_of_different_bases_are_not_taken_for_seeds():
    jobs = [tiny_transfer("full"), tiny_transfer("full", seed=1), tiny_transfer("full", base=tiny_base("scratch"))]
    curves = [CurveSpec(transfer=job, shares=(0.0,)) for job in jobs]
    results = [
        (job, {"shares": [0.0], "fids": [fid], "protocol": "p"}) for job, fid in zip(curves, (1.0, 3.0, 9.0), strict=True)
    ]
    rows = {row["method"]: row for row in curve_rows(results, MethodNames(job.transfer for job, _ in results))}
    assert (rows["full from fine"]["fid"], rows["full from fine"]["num_seeds"]) == (2.0, 2)
    assert rows["full from scratch"]["fid"] == 9.0 and rows["full from scratch"]["fid_stderr"] is None


def test_bad_shares_are_named():
    with pytest.raises(ValueError, match="between 0 and 1"):
        CurveSpec(transfer=tiny_transfer("full"), shares=(0.0, 1.5))
