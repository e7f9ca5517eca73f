"""A search on a small grid, and a study driven without Ray: jobs are done by writing records with a known score."""

from dataclasses import replace
from pathlib import Path

from sweeps.command_line.options import preset_grid
from sweeps.search.planning import SearchSpec, plan_search
from sweeps.search.study import ScheduleStudy, Studies, StudySpec
from trainables.specs.base import JobSpec
from trainables.specs.transfers import RungSpec, TransferSpec
from trainables.storage.store import Store

GRID = replace(preset_grid("demo"), depths=(2, 4), widths=(32, 64), methods=("fine",))


SEARCH = SearchSpec(
    method="diff-tuning",
    sizes=("L2-D32",),
    objectives=("fid",),
    num_trials=12,
    sampler="random",
    study_seed=0,
    searched=None,
    known_points=(),
    limits={},
    early_stopping=True,
    reduction_factor=3,
    proxy_samples=100,
    study=None,
)


def search(grid=GRID, **changes):
    return plan_search(grid, replace(SEARCH, **changes))


def spec(**changes) -> StudySpec:
    (study,) = search(**changes).studies
    return study


def score_of(transfer: TransferSpec) -> float:
    """Best for small weights of retention, whatever else is chosen."""
    weight = 0.0 if transfer.rehearsal is None else transfer.rehearsal.retention_weight
    return 1.0 + weight + transfer.training.lr + 0.01 * transfer.size.depth


def publish(store: Store, job: JobSpec, tmp_path: Path, fid: float | None = None) -> None:
    folder = tmp_path / "published"
    folder.mkdir(exist_ok=True)
    transfer = job.transfer if isinstance(job, RungSpec) else job
    metrics = {"fid": score_of(transfer) if fid is None else fid, "serve_bytes": 1000, "params_total": 500}
    metrics["forgetting/source_fid"] = 10 - metrics["fid"]
    store.publish(job, folder, {"metrics": metrics, "protocol": "p"})


def opened(study: StudySpec, tmp_path: Path) -> tuple[ScheduleStudy, Store]:
    tmp_path.mkdir(exist_ok=True)
    store = Store(tmp_path / "store")
    return ScheduleStudy(study, store, f"sqlite:///{tmp_path}/optuna.db"), store


def run(study: ScheduleStudy | Studies, store: Store, tmp_path: Path, limit: int | None = None) -> list[JobSpec]:
    """Do a study's jobs one after the other, at most `limit`; returns them."""
    done: list[JobSpec] = []
    owners = study.studies if isinstance(study, Studies) else [study]
    while limit is None or len(done) < limit:
        job = study.next_job()
        if job is None:
            break
        publish(store, job, tmp_path)
        next(s for s in owners if job.run_id in s.running).finished(job)
        done.append(job)
    return done
