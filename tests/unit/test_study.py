"""Studies: what they ask for and are told, and that nothing is lost or counted twice."""

import json
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from fine_core.evaluation.metrics import DEFAULT_METRICS
from sweeps.execution.graph import TaskGraph
from sweeps.planning.plan import plan_grid
from sweeps.results.points import point_result
from sweeps.search.agenda import NO_TRIAL, SearchAgenda
from sweeps.search.report import trial_counts, trial_rows
from sweeps.search.study import ScheduleStudy, StudyError, chosen_sampler, rungs_of
from tests.searches import GRID, opened, publish, publish_base_scores, run, score_of, search, spec
from trainables.failures import Failure, FailureKind
from trainables.specs.options import to_values
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.specs.transfers import TransferSpec
from trainables.storage.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def step_of(task: Task) -> int | None:
    """The step of the rung that a task scores, None for one that trains to the end."""
    return task.job.scored.step if isinstance(task.job, ScoreSpec) else None


def transfer_of(task: Task) -> TransferSpec:
    return task.job.trained if isinstance(task.job, ScoreSpec) else task.job


def test_the_papers_defaults_come_first_and_then_what_is_enqueued(tmp_path):
    study, store = opened(spec(known_points=("schedule=power:0.5, lr=1e-3",), early_stopping=False), tmp_path)
    tasks = run(study, store, tmp_path, limit=3)
    jobs = [task.job for task in tasks]
    assert [task.scores for task in tasks] == [(study.spec.point(job).score,) for job in jobs]
    assert jobs[0] == study.spec.default_transfer("L2-D32")
    first, second, third = (to_values(job.options) for job in jobs)
    paper = {"schedule": "linear", "weighting": "sampling", "retention_weight": 0.1, "source_ratio": 0.2}
    assert first == {f"diff-tuning.{name}": value for name, value in paper.items()}
    assert second == first | {"diff-tuning.retention_weight": 1.0}
    assert third == first | {"diff-tuning.schedule": "power:0.5"} and jobs[2].training.lr == 1e-3
    planned = {task.id for task in plan_grid(GRID).stages["transfer"]}
    assert jobs[0].id in planned, "the grid's own point is not computed again"


def test_rungs():
    assert rungs_of(300, 3) == (33, 99)
    assert rungs_of(9, 3) == (1, 3)
    assert rungs_of(8, 3) == (1,)
    assert rungs_of(3, 3) == (1,)
    assert rungs_of(2, 3) == ()


def test_stopped_trials_have_no_score_and_the_best_go_on(tmp_path):
    study, store = opened(spec(num_trials=20), tmp_path)
    tasks = run(study, store, tmp_path)
    assert study.is_exhausted() and study.num_asked == 20
    counts = trial_counts(study)
    assert counts["scored"] + counts["stopped"] == 20 and counts["stopped"] >= 8
    complete = {trial.user_attrs["transfer_id"]: trial for trial in study.complete_trials()}
    trained_to_the_end = [task for task in tasks if isinstance(task.job, TransferSpec)]
    assert {task.id for task in trained_to_the_end} == set(complete)
    assert study.spec.default_transfer("L2-D32").id in complete
    for trial in study.finished_trials:
        if trial.state == TrialState.PRUNED:
            assert trial.last_step in (33, 99)
    for row in trial_rows(study):
        assert (row["fid"] is None) == (row["outcome"] != "scored") and row["proxy_fid"] is not None
    # The score at a rung is the true order here, so nothing better than the best was stopped.
    everything = [score_of(study.spec.transfer(trial.params)) for trial in study.finished_trials]
    assert min(trial.values[0] for trial in complete.values()) == min(everything)
    assert {step_of(task) for task in tasks} == {33, 99, None}
    steps = sum({33: 33, 99: 66, None: 201}[step_of(task)] for task in tasks)
    assert counts["steps"] == steps and counts["full_steps"] == 20 * 300


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("stop_after", [2, 9, 20])
def test_a_search_cut_off_goes_on_under_the_same_numbers(tmp_path, stop_after, sampler):
    asked = spec(sampler=sampler, num_trials=18)  # of which TPE has the last 8 in its own hands
    whole, store = opened(asked, tmp_path / "whole")
    run(whole, store, tmp_path)

    first, store = opened(asked, tmp_path / "cut")
    started = run(first, store, tmp_path, limit=stop_after)
    lost = first.next_task()  # running when its process dies
    assert lost is not None
    del first
    again, _ = opened(asked, tmp_path / "cut")
    started += run(again, store, tmp_path)
    assert len({task.id for task in started}) == len(started), "nothing is computed twice"
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
    assert fewer.is_exhausted() and fewer.next_task() is None


def test_a_point_proposed_again_is_told_and_not_trained_again(tmp_path):
    study, store = opened(spec(searched=("sigma_steps",), num_trials=10, early_stopping=False), tmp_path)
    running = [study.next_task() for _ in range(3)]
    assert study.next_task() is None and study.num_asked == 10, "three different points, and the same again"
    assert len({task.id for task in running}) == 3 and not study.is_exhausted()
    for task in running:
        publish(store, task, tmp_path)
        study.finished(task)
    assert study.is_exhausted() and len(study.complete_trials()) == 10
    assert trial_counts(study)["full_steps"] == 3 * 300


def test_what_the_store_has_is_told_at_once(tmp_path):
    study, store = opened(spec(), tmp_path)
    publish(store, study.spec.point(study.spec.default_transfer("L2-D32")).task, tmp_path, fid=3.5)
    task = study.next_task()
    assert step_of(task) == 33 and to_values(transfer_of(task).options)["diff-tuning.retention_weight"] == 1.0
    (trial,) = study.complete_trials()
    assert (trial.number, trial.values) == (0, [3.5])


def test_what_is_trained_but_not_scored_is_scored(tmp_path):
    study, store = opened(spec(early_stopping=False), tmp_path)
    point = study.spec.point(study.spec.default_transfer("L2-D32"))
    publish(store, Task(job=point.model), tmp_path)
    task = study.next_task()
    assert task == point.task and not study.complete_trials()
    publish(store, Task(job=point.score), tmp_path, fid=3.5)
    study.finished(task)
    assert [trial.values for trial in study.complete_trials()] == [[3.5]]


@pytest.mark.parametrize("objectives", [("fid",), ("fid", "forgetting")])
def test_what_is_forgotten_is_scored_where_it_is_an_objective(tmp_path, objectives):
    (asked,) = search(objectives=objectives, early_stopping=False).studies
    study, store = opened(asked, tmp_path)
    publish_base_scores(study, store, tmp_path)
    (task,) = run(study, store, tmp_path, limit=1)
    sources = [score.dataset for score in task.scores if score.evaluation.unconditional]
    assert sources == (["digits"] if "forgetting" in objectives else [])
    assert all(isinstance(score, ScoreSpec) and score.scored == task.job for score in task.scores)
    planned = search(objectives=objectives).stages["base"]
    before = [score for base in planned for score in base.scores if score.evaluation.unconditional]
    assert len(before) == (len(planned) if "forgetting" in objectives else 0), "of the base models, before the studies"
    assert study.complete_trials() and point_result(study.spec.point(task.job), store) is not None


def test_any_metric_is_an_objective_with_its_direction_and_is_computed_for_it(tmp_path):
    study, store = opened(spec(objectives=("fid", "density"), num_trials=6), tmp_path)
    assert [direction.name for direction in study.study.directions] == ["MINIMIZE", "MAXIMIZE"]
    tasks = run(study, store, tmp_path)
    evaluations = {score.evaluation for task in tasks for score in task.scores}
    assert {evaluation.metrics for evaluation in evaluations} == {(*DEFAULT_METRICS, "density")}
    assert all(trial.values[1] == 1 / trial.values[0] for trial in study.complete_trials())
    assert len(study.study.best_trials) == len({tuple(trial.values) for trial in study.study.best_trials}) == 1


def test_a_trial_whose_score_lacks_an_objective_fails_with_its_name(tmp_path):
    study, store = opened(spec(objectives=("fid", "kid"), num_trials=1), tmp_path)
    run(study, store, tmp_path)
    assert study.is_exhausted() and not study.complete_trials()
    assert study.broken == {0: "bad input: this extractor and reference give no kid; leave it out of the objectives"}


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.DIVERGED])
def test_divergence_is_an_outcome_and_a_lost_worker_is_not(tmp_path, kind):
    study, store = opened(spec(early_stopping=False), tmp_path)
    diverged, lost = study.next_task(), study.next_task()
    study.failed(diverged, Failure(kind=FailureKind.DIVERGED, reason="the loss is nan by step 10", log="logs/a.log"))
    study.failed(lost, Failure(kind=kind, reason="the worker died", log="logs/b.log"))
    run(study, store, tmp_path)
    assert study.is_exhausted() and trial_counts(study)["diverged"] == 1
    assert study.broken == {1: f"{kind}: the worker died (log: logs/b.log)"}
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
    # What a search scores is part of its task, and forgetting is scored where it is an objective.
    with pytest.raises(StudyError, match="another task .*, early stopping, objectives; take"):
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
        task = study.next_task()
        bad = step_of(task) == 33 and trial_counts(study)["scored"] > 0
        publish(store, task, tmp_path, fid=99.0 if bad else None)
        if bad:
            break
        study.finished(task)

    def die(*args, **options):
        raise Dead

    with monkeypatch.context() as context:
        context.setattr(optuna.Study if lost == "tell" else optuna.Trial, lost, die)
        with pytest.raises(Dead):
            study.finished(task)
    again, _ = opened(spec(num_trials=4), tmp_path)
    run(again, store, tmp_path)
    (trial,) = (t for t in again.study.trials if t.user_attrs["transfer_id"] == transfer_of(task).id)
    # Between Optuna's own write of the decision and ours the answer is lost: the trial goes on, which costs steps alone.
    step = 99 if lost == "set_user_attr" else 33
    assert trial.state == TrialState.PRUNED and trial.user_attrs["outcome"] == f"stopped at step {step}"
    assert len(again.finished_trials) == 4
    assert again.finished(task) is None and len(again.finished_trials) == 4, "heard again, nothing changes"


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
    publish_base_scores(study, store, tmp_path)
    tasks = run(study, store, tmp_path)
    assert study.is_exhausted() and len(study.finished_trials) == 14
    if len(objectives) > 1:
        assert study.spec.halving is None and all(step_of(task) is None for task in tasks)
        assert all(trial.values[1] == pytest.approx(10 - trial.values[0]) for trial in study.complete_trials())


def test_auto_chooses_a_sampler_for_the_space():
    assert chosen_sampler(spec(sampler="auto")) == "tpe"
    assert chosen_sampler(spec(sampler="auto", method="difffit")) == "tpe", "a Gaussian process would not see what is stopped"
    assert chosen_sampler(spec(sampler="auto", method="difffit", early_stopping=False)) == "gp"
    many = {"objectives": ("fid", "forgetting"), "num_trials": 1000}
    assert chosen_sampler(spec(sampler="auto", **many)) == "nsga2"
    assert chosen_sampler(spec(sampler="random")) == "random"


def test_a_cost_among_the_objectives_makes_the_size_a_parameter(tmp_path):
    plan = search(method="difffit", sizes=("all",), objectives=("fid", "serve_bytes"), limits={"serve_bytes": 24_000})
    (study,) = plan.studies
    names = [parameter.name for parameter in study.space.parameters]
    assert names[0] == "size" and "gamma_span@L4-D64" in names
    assert [point["size"] for point in study.known] == ["L2-D32", "L2-D64", "L4-D32", "L4-D64"]
    live, store = opened(study, tmp_path)
    tasks = run(live, store, tmp_path)
    assert len({transfer_of(task).size.name for task in tasks}) > 2
    for trial in live.complete_trials():
        assert live.spec.transfer(trial.params).size.name == trial.params["size"] == trial.user_attrs["size"]
        assert trial.constraints == {"serve_bytes": 1000 - 24_000}
    with pytest.raises(ValueError, match="every point of diff-tuning L2-D32 stores the same bytes"):
        search(objectives=("fid", "serve_bytes"))


def test_the_definition_of_a_study_is_plain_data():
    content = json.loads(spec().definition)
    assert set(content) == {"space", "objectives", "limits", "halving", "defaults"}


def test_a_base_model_without_its_score_ends_a_trial_and_does_not_queue_it_for_ever(tmp_path):
    study, store = opened(spec(objectives=("fid", "forgetting"), num_trials=1), tmp_path)
    assert len(run(study, store, tmp_path, limit=5)) == 1
    assert "lost artifact: the score of its base model" in study.broken[0] and not study.running


def test_the_progress_hears_of_every_trial_that_ends_once(tmp_path):
    store = Store(tmp_path / "store")
    agenda = SearchAgenda(search(num_trials=5), store, f"sqlite:///{tmp_path}/optuna.db")
    graph = TaskGraph(agenda.plan.tasks, after_s=agenda.after_s())
    source, costs, ended = agenda.source(graph), agenda.further_costs(), []
    num_planned = 0
    while (task := source.next_task()) is not None:
        is_planned = graph.is_open(task.id)
        num_planned += is_planned
        assert is_planned or num_planned == len(agenda.plan.tasks), "a study waits for what its points are made from"
        publish(store, task, tmp_path, fid=1.0 if is_planned else None)
        graph.finished(task)
        heard = agenda.finished(task)
        assert heard.advance == (1 if is_planned else len(heard.ended))
        ended += heard.ended
    assert ended == list(costs) and len(ended) == 5 and source.is_exhausted()


def test_a_study_whose_base_model_fails_is_closed_and_the_others_go_on(tmp_path):
    store = Store(tmp_path / "store")
    plan = search(num_trials=2, sizes=("L2-D32", "L4-D64"), early_stopping=False)
    agenda = SearchAgenda(plan, store, f"sqlite:///{tmp_path}/optuna.db")
    graph = TaskGraph(plan.tasks, after_s=agenda.after_s())
    source, done = agenda.source(graph), []
    while (task := source.next_task()) is not None:
        if task.job.kind == "base" and task.job.size.name == "L2-D32":
            failure = Failure(kind=FailureKind.DIED, reason="out of luck")
            for lost in (task, *(other for other, _ in graph.failed(task))):
                agenda.failed(lost, failure)
            continue
        publish(store, task, tmp_path, fid=1.0)
        graph.finished(task)
        agenda.finished(task)
        done.append(task)
    assert source.is_exhausted()
    sizes = [transfer_of(task).size.name for task in done if not any(task.id == planned.id for planned in plan.tasks)]
    assert sizes == ["L4-D64"] * 2
    broken, whole = agenda.studies
    assert "out of luck" in broken.broken[NO_TRIAL] and not whole.broken
