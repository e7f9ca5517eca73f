"""The space of a schedule search: what exists when, what limits leave of it, and how its points are written and planned."""

from dataclasses import replace

import optuna
import pytest

from fine_core.retention import FAMILIES, RetentionSchedule
from sweeps.search.objectives import OBJECTIVES
from tests.searches import GRID, search, spec
from trainables.specs.options import to_values


def test_the_parameter_of_a_family_exists_for_it_alone():
    space = spec().space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    families = set()
    for _ in range(200):
        point = space.suggest(study.ask())
        text = space.settings(point).plain()["schedule"]
        schedule = RetentionSchedule.parse(text)
        assert str(schedule) == text, "or its ids would differ"
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
    assert len(plan.studies) == 4 and len(plan.stages["base"]) == len(plan.stages["bank"]) == 4 * 3
    # The source's own extractor only where the source domain is scored.
    assert sorted(task.job.kind for task in plan.stages["source"]) == ["extractor", "learngene"]
    with_forgetting = search(sizes=("all",), objectives=("fid", "forgetting"))
    assert [task.job.kind for task in with_forgetting.stages["source"]].count("extractor") == 2
    known = {job.id for job in plan.jobs}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for spec_of_size in plan.studies:
        for _ in range(30):
            transfer = spec_of_size.transfer(spec_of_size.space.suggest(study.ask()))
            assert {need.id for need in spec_of_size.point(transfer).task.needs} <= known


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


def spans_of(study) -> tuple[float, ...]:
    return next(parameter.values for parameter in study.space.parameters if parameter.name == "gamma_span")


def test_limits_leave_out_what_does_not_keep_to_them():
    difffit = {"method": "difffit", "sizes": ("all",)}
    all_spans = (0.0, 0.25, 0.5, 0.75, 1.0)
    plan = search(**difffit)
    assert all(spans_of(study) == all_spans for study in plan.studies) and not plan.excluded
    plan = search(**difffit, limits={"serve_bytes": 24_000})
    sizes = {size: spans_of(study) for study in plan.studies for size in study.sizes}
    assert sizes["L2-D32"] == all_spans and 0 < len(sizes["L4-D64"]) < 5
    plan = search(**difffit, limits={"params_total": 100_000})
    assert plan.excluded == ("L2-D64", "L4-D64")
    with pytest.raises(ValueError, match=r"no point keeps to serve_bytes <= 100; the least is serve_bytes [\d,]+$"):
        search(**difffit, limits={"serve_bytes": 100})
    fixed = {"method": "difffit", "sizes": ("L4-D64",), "searched": ("lr",)}
    with pytest.raises(ValueError, match="no point keeps to serve_bytes <= 24,000; the least is serve_bytes 25,648"):
        search(**fixed, limits={"serve_bytes": 24_000})  # of the one span that is not searched


def test_a_limit_clips_the_default_and_what_a_known_point_leaves_out():
    study = spec(method="difffit", sizes=("L4-D64",), limits={"serve_bytes": 24_000}, known_points=("lr=0.05",))
    allowed = spans_of(study)
    assert 0.5 not in allowed and [point["gamma_span"] for point in study.known] == [max(allowed)] * 2
    assert to_values(study.default_transfer("L4-D64").options) == {"difffit.gamma_span": max(allowed)}
    with pytest.raises(ValueError, match="gamma_span 0.5 is outside its search range"):
        spec(method="difffit", sizes=("L4-D64",), limits={"serve_bytes": 24_000}, known_points=("gamma_span=0.5",))
    joint = {"method": "difffit", "sizes": ("all",), "objectives": ("fid", "serve_bytes")}
    with pytest.raises(ValueError, match="'lr=0.05' names no size, which is searched here: add size="):
        spec(**joint, known_points=("lr=0.05",))
    assert spec(**joint, known_points=("lr=0.05,size=L4-D32",)).known[-1]["size"] == "L4-D32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("speed",)}, "unknown objective 'speed'; choose from fid, sfid, kid"),
        ({"objectives": ("forgetting",)}, "one of them must be fid"),
        ({"num_trials": 0}, "trials is 0; it must be at least 1"),
        ({"sizes": ("L9-D9",)}, "the grid has no size 'L9-D9'; choose from L2-D32"),
        ({"searched": ("speed",)}, "unknown parameter 'speed'; choose from lr"),
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


def from_initializations(*names: str, **changes):
    transfer = replace(GRID.transfer, initializations=names)
    return search(grid=replace(GRID, widths=(32,), methods=names, transfer=transfer), **changes)


def test_a_study_for_each_initialization_whose_base_models_are_transferred():
    studies = from_initializations("fine", "sws", "tleg").studies
    assert [study.initialization for study in studies] == ["fine", "sws", "tleg"]
    assert len({study.name for study in studies}) == 3
    assert [study.label for study in studies] == [f"diff-tuning L2-D32{end}" for end in ("", " from sws", " from tleg")]
    with pytest.raises(ValueError, match="studies of several initializations need names of their own; leave --study out"):
        from_initializations("fine", "sws", study="mine")


def test_options_that_need_another_artifact_are_searched_only_where_they_are_asked_for():
    def start_options(**changes):
        studies = from_initializations("fine", "sws", "tleg", **changes).studies
        return [{option.name for option in study.space.options if option.is_start} for study in studies]

    assert start_options() == [{"sigma_steps"}, set(), set()]
    both = start_options(objectives=("fid", "initialize_bytes"))
    assert both == [{"sigma_steps", "rank_ratio"}, {"stages"}, set()]
    only = from_initializations("fine", searched=("rank_ratio", "lr"))
    assert {option.name for option in only.studies[0].space.options} == {"rank_ratio", "lr"}
    learngenes = {task.job.rank for task in only.tasks if task.job.kind == "learngene"}
    assert learngenes == {16, 32, 48}, "what any trial may ask for is made before"


def test_the_bytes_of_an_initialization_are_an_objective_of_the_result():
    assert OBJECTIVES["initialize_bytes"].result == "initialize_bytes" and OBJECTIVES["initialize_bytes"].lower_is_better
