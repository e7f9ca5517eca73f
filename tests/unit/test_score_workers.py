"""A score by two workers over gloo: what rank 0 gathers gives the numbers of one worker."""

import multiprocessing
from dataclasses import replace

import pytest
import torch

from tests.tiny import TINY_EVALUATION, compute, tiny_base, tiny_score
from trainables.jobs.run import run_job
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.store import Store
from trainables.training.context import LocalContext

METRICS = ("fid", "kid", "inception_score", "density", "mind")


def score_job(num_samples: int):
    return tiny_score(tiny_base("scratch"), evaluation=replace(TINY_EVALUATION, num_samples=num_samples, metrics=METRICS))


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    context = LocalContext(f"{folder}/context-{rank}")
    context.rank, context.num_workers = rank, 2
    assert context.gather_to_first(rank) == ([0, 1] if rank == 0 else [])
    for num_samples in (20, 7):  # three batches of 8, and one: then rank 1 has none
        run_job(score_job(num_samples), Store(f"{folder}/two"), context, checkpoint_every_steps=4)
    torch.distributed.destroy_process_group()


def test_two_workers_give_the_numbers_of_one(tmp_path):
    alone, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for job in (ExtractorSpec(dataset="digits"), tiny_base("scratch")):
        for store in (alone, two):
            compute(job, store, LocalContext(tmp_path / "contexts" / store.root.replace("/", "-") / job.id))
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    for num_samples in (20, 7):
        job = score_job(num_samples)
        expected = compute(job, alone, LocalContext(tmp_path / "alone")).metrics
        found = two.record(job).metrics
        for name in METRICS:
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name
        assert "precision" not in found, "it was not asked for"
