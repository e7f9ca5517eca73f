"""Make a knowledge bank: images of a base model, drawn by all workers together and kept as Parquet."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import ClassVar

import torch

from fine_core.checkpoints.native import load_model
from fine_core.data.pixels import to_uint8
from fine_core.data.registry import dataset_info
from fine_core.denoiser import LABEL
from fine_core.evaluation.finite import not_finite
from fine_core.randomness import stream_seed
from fine_core.sampling.draw import draw_batch
from fine_core.transfer.bank import bank_labels, save_bank
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind, Kept, Role
from trainables.jobs.work import Work
from trainables.specs.transfers import BankSpec
from trainables.storage.files import BANK_FILE, MODEL_FILE
from trainables.training.checkpoint import report_checkpoint, restore_checkpoint

NUM_REPORTS = 20


class BankKind(JobKind):
    name = "bank"
    unit = "images"
    is_passing = True
    kept: ClassVar = Kept(file=BANK_FILE, role=Role.INITIALIZE, seconds="sampling_s")

    def work(self, job: BankSpec) -> Work:
        return Work(model=job.model, images=job.num_images, images_at_once=job.batch_size, sampler=job.sampler)

    def result_bytes(self, job: BankSpec) -> int:
        info = dataset_info(job.base.dataset)
        return job.num_images * info.channels * info.image_size**2 * (1 if info.latents is None else 2)

    def run(self, job: BankSpec, context: JobContext) -> Result:
        """Draw the bank from its latest checkpoint on. The images do not depend on the number of workers."""
        store, run = context.store, context.run
        model = load_model(store.fetch(job.base, MODEL_FILE), expect=job.model).to(run.device).eval()
        labels = bank_labels(job.num_images, job.model.num_classes, seed=job.seed).to(run.device).split(job.batch_size)
        seed, is_latent = stream_seed(job.seed, "bank"), dataset_info(job.base.dataset).latents is not None
        state = restore_checkpoint(run) or {"batches": [], "sampling_s": 0.0}
        done: list[torch.Tensor] = [batch.cpu() for batch in state["batches"]]
        started, sampling_s = time.perf_counter(), state["sampling_s"]
        rounds_per_report = max(1, len(labels) // (NUM_REPORTS * run.num_workers))
        for round_, first in enumerate(range(len(done), len(labels), run.num_workers)):
            index = first + run.rank
            mine, problem = None, None
            if index < len(labels):
                drawn = draw_batch(model, {LABEL: labels[index]}, job.sampler, seed=seed, index=index)
                problem = not_finite(drawn)
                mine = (drawn.half() if is_latent else to_uint8(drawn)).cpu()
            run.raise_together(problem)
            done += [images for images in run.gather(mine) if images is not None]
            if (round_ + 1) % rounds_per_report == 0:
                elapsed_s = sampling_s + time.perf_counter() - started
                drawn = sum(map(len, done))
                metrics = {"step": drawn, "total_steps": job.num_images, "phase": "sampling", "history": []}
                report_checkpoint(run, metrics, {"batches": done, "sampling_s": elapsed_s})
        sampling_s += time.perf_counter() - started
        images = torch.cat(done)
        if run.rank == 0:
            protocol = {"base": job.base.id, "sampler": asdict(job.sampler), "labels": "uniform", "seed": job.seed}
            save_bank(context.folder / BANK_FILE, images, protocol=protocol)
        return Result(metrics={"sampling_s": sampling_s, "bank_images": len(images)})
