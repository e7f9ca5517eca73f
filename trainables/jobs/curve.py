"""The chain-of-forgetting curve: FID against the share of denoising steps that the base model takes back.

arXiv 2406.00773, section 2: from the data end, the tuned denoiser is replaced by the pre-trained one with the null label.
"""

from __future__ import annotations

import time
from typing import Any

from fine_core.sampling.draw import Tail
from trainables.jobs.scoring import score_model
from trainables.jobs.transfer import load_base, load_transferred
from trainables.specs.transfers import CurveSpec
from trainables.storage.store import Store
from trainables.training.context import RunContext


def run_curve(job: CurveSpec, store: Store, run: RunContext) -> dict[str, Any]:
    """Score the transferred model once for every number of replaced steps that the shares come to."""
    transfer = job.transfer
    tuned = load_transferred(transfer, store).to(run.device)
    base = load_base(transfer, store).to(run.device).eval()
    started, fids, protocol = time.perf_counter(), [], ""
    sampling_steps = transfer.evaluation.sampler.sampling_steps
    replaced = sorted({round(share * sampling_steps) for share in job.shares})
    for done, steps in enumerate(replaced):
        scores = score_model(
            tuned,
            transfer.evaluation,
            transfer.extractor,
            store=store,
            seed=transfer.seed,
            run=run,
            tail=Tail(model=base, steps=steps),
        )
        fids.append(scores.fid)
        protocol = scores.protocol
        run.report({"step": done + 1, "total_steps": len(replaced), "phase": "sampling", "history": []}, None)
    return {
        "metrics": {"eval_s": time.perf_counter() - started},
        "shares": [steps / sampling_steps for steps in replaced],
        "fids": fids,
        "protocol": protocol,
    }
