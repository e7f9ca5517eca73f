"""Schedule search: its space, what studies ask for and are told, and that nothing is lost or counted twice."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fine_core.retention import FAMILIES, RetentionSchedule
from sweeps.options import preset_grid
from sweeps.planning import plan_grid
from sweeps.search_planning import SearchSpec, plan_search
from sweeps.search_report import trial_counts, trial_rows
from sweeps.settings import TunedTransfer, read_tuned, write_tuned
from sweeps.study import ScheduleStudy, Studies, StudyError, StudySpec, chosen_sampler, rungs_of
from trainables.spec import JobSpec, RungSpec, TransferSpec
from trainables.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
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


def test_the_parameter_of_a_family_exists_for_it_alone():
    space = spec().space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    families = set()
    for _ in range(200):
        point = space.suggest(study.ask())
        schedule = space.settings(point).schedule
        again = RetentionSchedule.parse(str(schedule))
        assert again == schedule and type(again.parameter) is type(schedule.parameter), "or its ids would differ"
        families.add(schedule.family)
        assert {name for name in FAMILIES if name in point} == ({schedule.family} if FAMILIES[schedule.family] else set())
        settings = space.settings(point)
        assert space.settings(space.point(settings, "L2-D32")) == settings
        for name, value in space.point(settings, "L2-D32").items():
            assert value == (pytest.approx(point[name], rel=5e-3) if isinstance(value, float) else point[name])
        for parameter in space.parameters:
            assert parameter.name not in point or parameter.holds(point[parameter.name])
    assert families == set(FAMILIES)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", {"lr", "sigma_steps"}),
        ("difffit", {"lr", "sigma_steps", "gamma_span"}),
        ("diff-tuning-psi", {"family", "power", "complement", "cutoff", "lr", "sigma_steps"}),
        (
            "diff-tuning+difffit",
            {"family", "power", "complement", "cutoff", "retention_weight", "source_ratio", "lr", "sigma_steps", "gamma_span"},
        ),
    ],
)
def test_a_method_searches_what_it_has(method, expected):
    study = spec(method=method)
    assert {parameter.name for parameter in study.space.parameters} == expected
    searched = spec(method=method, searched=("lr",))
    assert [parameter.name for parameter in searched.space.parameters] == ["lr"]
    default = searched.default_transfer("L2-D32")
    assert searched.transfer({"lr": 1e-3}) == replace(default, training=replace(default.training, lr=1e-3))


def test_base_models_of_scratch_have_no_sigma_steps():
    grid = replace(GRID, methods=("scratch",), transfer=replace(GRID.transfer, initializations=("scratch",)))
    plan = search(grid, method="full")
    assert [parameter.name for parameter in plan.studies[0].space.parameters] == ["lr"]
    with pytest.raises(ValueError, match="full from scratch has no sigma_steps; it has lr"):
        search(grid, method="full", searched=("sigma_steps",))


def test_every_base_and_bank_that_a_point_may_ask_for_is_planned_before_the_search():
    plan = search(sizes=("all",))
    assert len(plan.studies) == 4 and len(plan.base) == len(plan.bank) == 4 * 3 and len(plan.source) == 3
    known = {job.id for job in plan.jobs}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for spec_of_size in plan.studies:
        for _ in range(30):
            transfer = spec_of_size.transfer(spec_of_size.space.suggest(study.ask()))
            assert {need.id for need in transfer.needs} <= known


def test_the_papers_defaults_come_first_and_then_what_is_enqueued(tmp_path):
    study, store = opened(spec(known_points=("schedule=power:0.5, lr=1e-3",), early_stopping=False), tmp_path)
    jobs = run(study, store, tmp_path, limit=3)
    assert jobs[0] == study.spec.default_transfer("L2-D32")
    first, second, third = (job.rehearsal for job in jobs)
    assert str(first.schedule) == "linear" and first.retention_weight == 0.1 and first.source_ratio == 0.2
    assert second == replace(first, retention_weight=1.0)
    assert third == replace(first, schedule=RetentionSchedule.parse("power:0.5")) and jobs[2].training.lr == 1e-3
    assert jobs[0].id in {job.id for job in plan_grid(GRID).transfer}, "the grid's own point is not computed again"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("schedule=power:9", "power 9.0 is outside its search range: 0.1 to 3"),
        ("lr=1", "lr 1.0 is outside its search range"),
        ("speed=3", "'speed=3' of a point to try is not NAME=VALUE of "),
        ("lr", "'lr' of a point to try is not NAME=VALUE"),
        ("lr=fast", "lr=fast of a point to try is not a number"),
        ("schedule=square", "unknown schedule 'square'"),
        ("gamma_span=0.5", "'gamma_span=0.5' of a point to try is not NAME=VALUE"),
        ("source_ratio=0.12345", "'source_ratio=0.12345' has numbers of more than three digits"),
    ],
)
def test_a_point_outside_the_space_is_refused(point, message):
    with pytest.raises(ValueError) as error:
        spec(known_points=(point,))
    assert message in str(error.value)


def test_rungs():
    assert rungs_of(300, 3) == (33, 99)
    assert rungs_of(9, 3) == (1, 3)
    assert rungs_of(8, 3) == (1, 3) or rungs_of(8, 3) == (1,)
    assert rungs_of(3, 3) == (1,)
    assert rungs_of(2, 3) == ()


def test_stopped_trials_have_no_score_and_the_best_go_on(tmp_path):
    study, store = opened(spec(num_trials=20), tmp_path)
    jobs = run(study, store, tmp_path)
    assert study.is_exhausted() and study.num_asked == 20
    counts = trial_counts(study)
    assert counts["scored"] + counts["stopped"] == 20 and counts["stopped"] >= 8
    complete = {trial.user_attrs["transfer_id"]: trial for trial in study.complete_trials()}
    trained_to_the_end = [job for job in jobs if isinstance(job, TransferSpec)]
    assert {job.id for job in trained_to_the_end} == set(complete)
    assert study.spec.default_transfer("L2-D32").id in complete
    for trial in study.finished_trials:
        if trial.state == TrialState.PRUNED:
            assert trial.last_step in (33, 99)
    for row in trial_rows(study):
        assert (row["fid"] is None) == (row["outcome"] != "scored") and row["proxy_fid"] is not None
    # The score at a rung is the true order here, so nothing better than the best was stopped.
    everything = [score_of(study.spec.transfer(trial.params)) for trial in study.finished_trials]
    assert min(trial.values[0] for trial in complete.values()) == min(everything)
    steps = sum(job.step for job in jobs if isinstance(job, RungSpec) and job.step == 33)
    steps += sum(66 for job in jobs if isinstance(job, RungSpec) and job.step == 99)
    steps += sum(201 for job in trained_to_the_end)
    assert counts["steps"] == steps and counts["full_steps"] == 20 * 300


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("stop_after", [2, 9, 20])
def test_a_search_cut_off_goes_on_under_the_same_numbers(tmp_path, stop_after, sampler):
    asked = spec(sampler=sampler, num_trials=18)  # of which TPE has the last 8 in its own hands
    whole, store = opened(asked, tmp_path / "whole")
    run(whole, store, tmp_path)

    first, store = opened(asked, tmp_path / "cut")
    started = run(first, store, tmp_path, limit=stop_after)
    lost = first.next_job()  # running when its process dies
    assert lost is not None
    del first
    again, _ = opened(asked, tmp_path / "cut")
    started += run(again, store, tmp_path)
    assert len({job.id for job in started}) == len(started), "nothing is computed twice"
    assert lost in started and again.is_exhausted()

    def outcome(study: ScheduleStudy):
        return [(trial.number, trial.params, trial.values, trial.intermediate_values) for trial in study.study.trials]

    assert outcome(again) == outcome(whole)
    assert not again.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_more_trials_add_to_a_study(tmp_path):
    study, store = opened(spec(num_trials=4), tmp_path)
    run(study, store, tmp_path)
    more, _ = opened(spec(num_trials=7), tmp_path)
    assert not more.is_exhausted()
    run(more, store, tmp_path)
    assert more.num_asked == 7 and more.spec.name == study.spec.name
    fewer, _ = opened(spec(num_trials=2), tmp_path)
    assert fewer.is_exhausted() and fewer.next_job() is None


def test_a_point_proposed_again_is_told_and_not_trained_again(tmp_path):
    study, store = opened(spec(searched=("sigma_steps",), num_trials=10, early_stopping=False), tmp_path)
    running = [study.next_job() for _ in range(3)]
    assert study.next_job() is None and study.num_asked == 10, "three different points, and the same again"
    assert len({job.id for job in running}) == 3 and not study.is_exhausted()
    for job in running:
        publish(store, job, tmp_path)
        study.finished(job)
    assert study.is_exhausted() and len(study.complete_trials()) == 10
    assert trial_counts(study)["full_steps"] == 3 * 300


def test_what_the_store_has_is_told_at_once(tmp_path):
    study, store = opened(spec(), tmp_path)
    publish(store, study.spec.default_transfer("L2-D32"), tmp_path, fid=3.5)
    job = study.next_job()
    assert isinstance(job, RungSpec) and job.transfer.rehearsal.retention_weight == 1.0
    (trial,) = study.complete_trials()
    assert (trial.number, trial.values) == (0, [3.5])


def test_divergence_is_an_outcome_and_a_lost_worker_is_not(tmp_path):
    study, store = opened(spec(early_stopping=False), tmp_path)
    diverged, lost = study.next_job(), study.next_job()
    study.failed(diverged, "ray.exceptions.RayTaskError(TrainingDiverged): TrainingDiverged: the loss is nan by step 10")
    study.failed(lost, "ray.exceptions.ActorDiedError: the worker died")
    run(study, store, tmp_path)
    assert study.is_exhausted() and trial_counts(study)["diverged"] == 1 and list(study.broken) == [1]
    frozen = study.study.trials[0]
    assert frozen.state == TrialState.PRUNED and frozen.user_attrs["outcome"] == "diverged: the loss is nan by step 10"

    again, _ = opened(spec(early_stopping=False), tmp_path)
    assert run(again, store, tmp_path) == [lost]
    assert len(again.finished_trials) == 12 and not again.broken


def test_a_study_of_another_space_or_task_is_refused(tmp_path):
    opened(spec(study="mine"), tmp_path)
    opened(spec(study="mine", sampler="tpe", num_trials=30), tmp_path)
    with pytest.raises(StudyError, match="study 'mine-diff-tuning-L2-D32' exists with another search space"):
        opened(spec(study="mine", searched=("lr",)), tmp_path)
    with pytest.raises(StudyError, match="another early stopping, objectives"):
        opened(spec(study="mine", objectives=("fid", "forgetting")), tmp_path)
    with pytest.raises(StudyError, match="another task"):
        opened(search(replace(GRID, steps=200), study="mine").studies[0], tmp_path)
    optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db", study_name="theirs-diff-tuning-L2-D32").ask()
    with pytest.raises(ValueError, match="was not made by schedule_search.py"):
        opened(spec(study="theirs"), tmp_path)


def test_a_study_whose_scores_are_elsewhere_is_refused(tmp_path):
    study, store = opened(spec(), tmp_path)
    run(study, store, tmp_path)
    with pytest.raises(ValueError, match="has scores that .* does not hold; take another --study, or the --storage-path"):
        ScheduleStudy(spec(), Store(tmp_path / "elsewhere"), f"sqlite:///{tmp_path}/optuna.db")


@pytest.mark.parametrize("lost", ["report", "should_prune", "set_user_attr", "tell"])
def test_cut_off_between_two_writes_of_a_decision(tmp_path, monkeypatch, lost):
    """A trial that is to be stopped, and a process that dies at any of the writes that say so."""

    class Dead(Exception):
        pass

    study, store = opened(spec(num_trials=4), tmp_path)
    while True:
        job = study.next_job()
        bad = isinstance(job, RungSpec) and job.step == 33 and trial_counts(study)["scored"] > 0
        publish(store, job, tmp_path, fid=99.0 if bad else None)
        if bad:
            break
        study.finished(job)

    def die(*args, **options):
        raise Dead

    with monkeypatch.context() as context:
        context.setattr(optuna.Study if lost == "tell" else optuna.Trial, lost, die)
        with pytest.raises(Dead):
            study.finished(job)
    again, _ = opened(spec(num_trials=4), tmp_path)
    run(again, store, tmp_path)
    (trial,) = (t for t in again.study.trials if t.user_attrs["transfer_id"] == job.transfer.id)
    # Between Optuna's own write of the decision and ours the answer is lost: the trial goes on, which costs steps alone.
    step = 99 if lost == "set_user_attr" else 33
    assert trial.state == TrialState.PRUNED and trial.user_attrs["outcome"] == f"stopped at step {step}"
    assert len(again.finished_trials) == 4
    assert again.finished(job) is None and len(again.finished_trials) == 4, "heard again, nothing changes"


@pytest.mark.parametrize("storage", ["sqlite:////nowhere/at/all.db", "nonsense", "postgresql://user:secret@localhost:1/x"])
def test_a_storage_that_cannot_be_used_is_one_line(tmp_path, storage):
    with pytest.raises(StudyError) as error:
        ScheduleStudy(spec(), Store(tmp_path), storage)
    assert "cannot be used" in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


def test_default_names_tell_studies_apart():
    names = {
        spec(**changes).name
        for changes in ({}, {"sampler": "tpe"}, {"study_seed": 1}, {"searched": ("lr",)}, {"objectives": ("fid", "forgetting")})
    }
    assert len(names) == 5 and spec(num_trials=99).name == spec().name


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
@pytest.mark.parametrize("objectives", [("fid",), ("fid", "forgetting")])
def test_every_sampler_finishes_a_study(tmp_path, sampler, objectives):
    study, store = opened(spec(sampler=sampler, objectives=objectives, num_trials=14), tmp_path)
    jobs = run(study, store, tmp_path)
    assert study.is_exhausted() and len(study.finished_trials) == 14
    if len(objectives) > 1:
        assert study.spec.halving is None and not any(isinstance(job, RungSpec) for job in jobs)
        assert all(trial.values[1] == pytest.approx(10 - trial.values[0]) for trial in study.complete_trials())


def test_auto_chooses_a_sampler_for_the_space():
    assert chosen_sampler(spec(sampler="auto")) == "tpe"
    assert chosen_sampler(spec(sampler="auto", method="difffit")) == "tpe", "a Gaussian process would not see what is stopped"
    assert chosen_sampler(spec(sampler="auto", method="difffit", early_stopping=False)) == "gp"
    many = {"objectives": ("fid", "forgetting"), "num_trials": 1000}
    assert chosen_sampler(spec(sampler="auto", **many)) == "nsga2"
    assert chosen_sampler(spec(sampler="random")) == "random"


def test_limits_leave_out_what_does_not_keep_to_them():
    difffit = {"method": "difffit", "sizes": ("all",)}
    all_spans = (0.0, 0.25, 0.5, 0.75, 1.0)
    plan = search(**difffit)
    assert all(study.space.parameters[-1].values == all_spans for study in plan.studies) and not plan.excluded
    plan = search(**difffit, limits={"serve_bytes": 24_000})
    sizes = {size: study.space.parameters[-1].values for study in plan.studies for size in study.sizes}
    assert sizes["L2-D32"] == all_spans and 0 < len(sizes["L4-D64"]) < 5
    plan = search(**difffit, limits={"params_total": 100_000})
    assert plan.excluded == ("L2-D64", "L4-D64")
    with pytest.raises(ValueError, match=r"no point keeps to serve_bytes <= 100; the least is serve_bytes [\d,]+$"):
        search(**difffit, limits={"serve_bytes": 100})
    fixed = {"method": "difffit", "sizes": ("L4-D64",), "searched": ("lr",)}
    with pytest.raises(ValueError, match="no point keeps to serve_bytes <= 24,000; the least is serve_bytes 25,568"):
        search(**fixed, limits={"serve_bytes": 24_000})  # of the one span that is not searched


def test_a_limit_clips_the_default_and_what_a_known_point_leaves_out():
    study = spec(method="difffit", sizes=("L4-D64",), limits={"serve_bytes": 24_000}, known_points=("lr=0.05",))
    allowed = study.space.parameters[-1].values
    assert 0.5 not in allowed and [point["gamma_span"] for point in study.known] == [max(allowed)] * 2
    assert study.default_transfer("L4-D64").gamma_span == max(allowed)
    with pytest.raises(ValueError, match="gamma_span 0.5 is outside its search range"):
        spec(method="difffit", sizes=("L4-D64",), limits={"serve_bytes": 24_000}, known_points=("gamma_span=0.5",))
    joint = {"method": "difffit", "sizes": ("all",), "objectives": ("fid", "serve_bytes")}
    with pytest.raises(ValueError, match="'lr=0.05' names no size, which is searched here: add size="):
        spec(**joint, known_points=("lr=0.05",))
    assert spec(**joint, known_points=("lr=0.05,size=L4-D32",)).known[-1]["size"] == "L4-D32"


def test_a_cost_among_the_objectives_makes_the_size_a_parameter(tmp_path):
    plan = search(method="difffit", sizes=("all",), objectives=("fid", "serve_bytes"), limits={"serve_bytes": 24_000})
    (study,) = plan.studies
    names = [parameter.name for parameter in study.space.parameters]
    assert names[0] == "size" and "gamma_span@L4-D64" in names
    assert [point["size"] for point in study.known] == ["L2-D32", "L2-D64", "L4-D32", "L4-D64"]
    live, store = opened(study, tmp_path)
    jobs = run(live, store, tmp_path)
    assert len({job.size.name for job in jobs}) > 2
    for trial in live.complete_trials():
        assert live.spec.transfer(trial.params).size.name == trial.params["size"] == trial.user_attrs["size"]
        assert trial.constraints == {"serve_bytes": 1000 - 24_000}
    with pytest.raises(ValueError, match="every point of diff-tuning L2-D32 stores the same bytes"):
        search(objectives=("fid", "serve_bytes"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("speed",)}, "unknown objective 'speed'; choose from fid, forgetting, serve_bytes"),
        ({"objectives": ("forgetting",)}, "one of them must be fid"),
        ({"num_trials": 0}, "trials is 0; it must be at least 1"),
        ({"sizes": ("L9-D9",)}, "the grid has no size 'L9-D9'; choose from L2-D32"),
        ({"searched": ("speed",)}, "unknown parameter 'speed'; choose from family"),
        ({"searched": ("gamma_span",)}, "diff-tuning from fine has no gamma_span"),
        ({"reduction_factor": 1}, "reduction_factor is 1"),
        ({"limits": {"serve_bytes": 0}}, "the limit of serve_bytes is 0; it must be positive"),
        ({"study_seed": -1}, "study_seed is -1"),
    ],
)
def test_bad_searches_are_refused(changes, message):
    with pytest.raises(ValueError) as error:
        search(**changes)
    assert message in str(error.value)


def test_what_a_search_found_is_the_same_point_in_a_grid(tmp_path):
    study = spec()
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    found = study.space.settings({**study.space.suggest(asked.ask()), "family": "power", "power": 1 / 3})
    tuned = TunedTransfer(method="diff-tuning", initialization="fine", size="L2-D32", settings=found)
    path = write_tuned(tmp_path / "best.json", [(tuned, {"fid": 1.0})])
    assert read_tuned(path) == (tuned,) and '"power:0.333"' in path.read_text()

    grid = replace(GRID, transfer=replace(GRID.transfer, methods=("full",), schedules=(), tuned=read_tuned(path)))
    plan = plan_grid(grid)
    names = {job.id: plan.names.of(job) for job in plan.points}
    (same,) = (job for job in plan.transfer if job.size.name == "L2-D32" and names[job.id] == "diff-tuning tuned")
    assert same.training.lr == found.lr and same.rehearsal.schedule == found.schedule
    assert same.base.initialization.sigma_steps == found.sigma_steps
    # Searched at one size, it serves all; its base models are points of their own name, unless they are the grid's.
    assert sum(name == "diff-tuning tuned" for name in names.values()) == 4
    assert sum(name == "fine" for name in names.values()) == 4
    assert sum(name == f"fine {found.sigma_steps} sigma steps" for name in names.values()) == (
        0 if found.sigma_steps == GRID.sigma_steps else 4
    )
    assert all(need.id in {job.id for job in plan.jobs} for job in plan.transfer for need in job.needs)

    labels = [plan.labels[job.id] for job in plan.jobs]
    assert len(set(labels)) == len(labels), "nothing is called like another"
    with pytest.raises(ValueError, match="settings of diff-tuning at L2-D32 come twice; name one file for them"):
        replace(grid.transfer, tuned=(tuned, tuned))
    with pytest.raises(ValueError, match="found for base models of scratch; add --transfer-from scratch"):
        replace(grid.transfer, tuned=(replace(tuned, initialization="scratch"),))
    both = write_tuned(tmp_path / "two.json", [(tuned, {}), (replace(tuned, size="L4-D64"), {})])
    with pytest.raises(
        ValueError, match="no settings of diff-tuning for L2-D64, only for L2-D32, L4-D64; search that size too"
    ):
        plan_grid(replace(grid, transfer=replace(grid.transfer, tuned=read_tuned(both))))


def tuned_text(**changes) -> str:
    settings = {"schedule": "linear", "retention_weight": 0.1, "source_ratio": 0.2, "gamma_span": 0.5, "lr": 1e-3}
    entry = {"method": "full", "initialization": "fine", "size": "L2-D32", "settings": settings | changes}
    return json.dumps({"format": 1, "tuned": [entry]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not a best.json of schedule_search.py"),
        ("[]", "is not a best.json of schedule_search.py"),
        ('{"format": 7, "tuned": []}', "its format is 7, this version reads 1"),
        ('{"format": 1, "tuned": []}', "it holds no settings"),
        (tuned_text(sigma_steps="x"), "sigma_steps is 'x'; it must be a whole number or null"),
        (tuned_text(schedule=5), "schedule is 5; it must be a text or null"),
        (tuned_text(gamma_span=7), "gamma_span is 7; it must be between 0 and 1"),
        (tuned_text(lr="fast"), "lr is 'fast'; it must be a number"),
        ('{"format": 1, "tuned": [{"method": "full"}]}', "is not a best.json of schedule_search.py (KeyError: 'settings')"),
    ],
)
def test_a_bad_schedules_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_tuned(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_definition_of_a_study_is_plain_data():
    content = json.loads(spec().definition)
    assert set(content) == {"space", "objectives", "limits", "halving", "defaults"}
