"""A search on a small grid, and a study driven without Ray: jobs are done by writing records with a known score."""

from dataclasses import replace
from pathlib import Path

from fine_core.evaluation.protocol import Protocol
from sweeps.command_line.options import preset_grid
from sweeps.search.planning import SearchSpec, plan_search, points_of_all_bases
from sweeps.search.study import ScheduleStudy, Studies, StudySpec
from trainables.specs.base import JobSpec
from trainables.specs.identity import to_json
from trainables.specs.options import to_values
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.specs.transfers import TransferSpec
from trainables.storage.record import Record
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
    weight = to_values(transfer.options).get("diff-tuning.retention_weight", 0.0)
    return 1.0 + weight + transfer.training.lr + 0.01 * transfer.size.depth


def publish(store: Store, task: Task, tmp_path: Path, fid: float | None = None) -> None:
    """Records of a task's jobs with a known score."""
    folder = tmp_path / "published"
    folder.mkdir(exist_ok=True)
    for job in task.jobs:
        transfer = job.trained if isinstance(job, ScoreSpec) else job
        value = score_of(transfer) if fid is None else fid
        if isinstance(job, ScoreSpec):
            metrics = {"fid": 10 - value if job.evaluation.unconditional else value, "eval_s": 1.0}
            metrics |= {"density": 1 / value} if "density" in job.evaluation.metrics else {}
        else:
            metrics = {"serve_bytes": 1000, "params_total": 500}
        metrics |= {"job_s": 1.0, "peak_memory_bytes": 1}
        store.publish(job, folder, record_of(job, metrics))


def record_of(job: JobSpec, metrics: dict[str, float], **fields) -> Record:
    protocol = None
    if isinstance(job, ScoreSpec):
        protocol = Protocol.of(job.evaluation, extractor="e", reference=f"{job.dataset}:pool")
    return Record(
        id=job.id, kind=job.kind, label=job.label, spec=to_json(job), metrics=metrics, **{"protocol": protocol, **fields}
    )


def publish_base_scores(study: ScheduleStudy, store: Store, tmp_path: Path) -> None:
    """Scores of the base models on their own domain, which come before a study that measures forgetting."""
    spec, folder = study.spec, tmp_path / "published"
    folder.mkdir(exist_ok=True)
    transfers = [spec.transfer(point) for point in points_of_all_bases(spec)]
    for before in {point.forgetting_before for point in map(spec.point, transfers)} - {None}:
        store.publish(before, folder, record_of(before, {"fid": 1.0, "eval_s": 1.0, "job_s": 1.0, "peak_memory_bytes": 1}))


def opened(study: StudySpec, tmp_path: Path) -> tuple[ScheduleStudy, Store]:
    tmp_path.mkdir(exist_ok=True)
    store = Store(tmp_path / "store")
    return ScheduleStudy(study, store, f"sqlite:///{tmp_path}/optuna.db"), store


def run(study: ScheduleStudy | Studies, store: Store, tmp_path: Path, limit: int | None = None) -> list[Task]:
    """Do a study's tasks one after the other, at most `limit`; returns them."""
    done: list[Task] = []
    owners = study.studies if isinstance(study, Studies) else [study]
    while limit is None or len(done) < limit:
        task = study.next_task()
        if task is None:
            break
        publish(store, task, tmp_path)
        next(s for s in owners if task.job.run_id in s.running).finished(task)
        done.append(task)
    return done
