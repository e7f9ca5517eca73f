"""The command line: dry runs compute nothing, and every bad input is one line and exit code 2 before anything starts."""

import re
import socket
from dataclasses import replace

import pytest
from click.testing import CliRunner

from fine_core.dit import DIT_SIZES
from fine_core.evaluation.metrics import DEFAULT_METRICS
from fine_core.evaluation.protocol import Protocol
from sweeps.command_line.options import grid_from, preset_grid
from sweeps.forgetting_curve import main as forgetting_curve
from sweeps.planning.chosen import ChosenOptions
from sweeps.planning.costs import task_core_s
from sweeps.planning.plan import plan_grid
from sweeps.schedule_search import _request as request
from sweeps.schedule_search import main as schedule_search
from sweeps.search.study import ScheduleStudy
from sweeps.size_grid import main
from trainables.storage.store import Store


def invoke(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def planned_points(output: str) -> list[str]:
    """The points of a plan as it was printed, those that take several lines put together."""
    lines = output.splitlines()
    head = next(index for index, line in enumerate(lines) if line.split()[:2] == ["stage", "point"])
    start, end = lines[head].index("point"), lines[head].index("parameters")
    found: list[str] = []
    for line in lines[head + 2 :]:
        if not line.strip():
            break
        label = line[start:end].strip()
        if line[:start].strip():
            found.append(label)
        else:
            found[-1] += f" {label}"
    return found


def test_dry_run_prints_every_point_and_computes_nothing(tmp_path):
    grid = ["--depths", "1,3", "--widths", "16,32", "--seeds", "0,1", "--diff-tuning-schedule", "linear,power:0.5"]
    result = invoke("--dry-run", *grid, "--storage-path", str(tmp_path))
    assert result.exit_code == 0, result.output
    points = planned_points(result.output)
    assert len(points) == len(set(points)) == 67
    for method in ("fine", "scratch"):
        for size in ("L1-D16", "L3-D16", "L1-D32", "L3-D32"):
            for seed in (0, 1):
                assert f"{method} {size} seed {seed}" in points
                if method == "fine":
                    for transfer in ("full", "difffit", "fine-sigma", "diff-tuning linear", "diff-tuning power:0.5"):
                        assert f"{transfer} {size} from fine seed {seed}" in points
    # 67 models, banks and extractors; a score of each point, two of each of 40 transfers, one more of each of their 8 bases.
    assert "56 points; 171 of 171 jobs to compute" in result.output and "CPU cores" in result.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_the_cluster_preset_has_the_published_size(tmp_path):
    result = invoke("--dry-run", "--preset", "dit-b", "--dataset", "digits", "--storage-path", str(tmp_path))
    assert result.exit_code == 0 and "fine L12-D768 seed 0" in result.output
    assert (DIT_SIZES["DiT-B/2"].size.depth, DIT_SIZES["DiT-B/2"].size.width) == (12, 768)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cats"], "unknown dataset 'cats'; choose one of digits"),
        (["--widths", "50"], "width 50 is not divisible into heads of 16 channels; use 48"),
        (["--widths", "0"], "width 0"),
        (["--depths", "0"], "depth is 0; it must be at least 1"),
        (["--depths", "1000000"], "depth is 1000000; it must be at most 1000"),
        (["--depths", "two"], "'two' is not a list of whole numbers"),
        (["--steps", "-5"], "steps is -5"),
        (["--steps", "50"], "sigma_steps is 100; it must be between 0 and steps (50)"),
        (["--source-steps", "-1"], "steps is -1"),
        (["--source-seeds", "-1"], "source_seeds must be 0 or more"),
        (["--score-at", "300"], "score_at is 300; it must be 0 to steps - 1 (299)"),
        (["--equal-steps", "most"], "'most' is not one of 'total', 'free'"),
        (["--initializations", "sws", "--sws-stages", "9"], "sws: stages is 9; it must be 1 to 6, the source's depth"),
        (["--initializations", "heur-lg", "--depths", "2"], "heur-lg: blocks is 3; it must be 1 to 2, the source's depth"),
        (
            ["--initializations", "frequency", "--frequency-kept-share", "0"],
            "kept_share is 0.0; it must be above 0 and at most 1",
        ),
        (["--initializations", "wave", "--wave-template-ratio", "0"], "template_ratio is 0.0; it must be positive"),
        (["--initializations", "wave", "--wave-template-width", "24"], "wave: template_width is 24"),
        (["--initializations", "ligo", "--ligo-growth-steps", "-1"], "ligo trains its coefficients for -1 steps"),
        (["--initializations", "per-layer-svd", "--steps", "50"], "per-layer-svd trains its coefficients for 100 steps"),
        (["--methods", "magic"], "unknown initialization 'magic'; choose from fine, scratch"),
        (["--transfer", "magic"], "unknown transfer 'magic'; choose from full"),
        (["--lr", "inf"], "--lr is inf; it must be a finite number"),
        (["--rank-ratio", "nan"], "--fine-rank-ratio is nan; it must be a finite number"),
        (["--target", "cats"], "unknown dataset 'cats'"),
        (["--target", "shapes"], "target 'shapes' has 3 channels, the base model 1"),
        (["--dataset", "shapes", "--target", "digits"], "target 'digits' has 1 channels, the base model 3"),
        (
            ["--dataset", "shapes", "--target", "shapes-all"],
            "target 'shapes-all' has 10 classes, the base model's label table 8",
        ),
        (["--target", "digits-16"], "rehearses images of the source, which are smaller"),
        (["--schedules", "quadratic"], "unknown schedule 'quadratic'; choose one of linear"),
        (["--schedules", "cutoff"], "needs a number, such as cutoff:300"),
        (["--retention-weight", "-1"], "retention_weight is -1.0"),
        (["--source-ratio", "1"], "source_ratio is 1.0; it must be between 0 and 1"),
        (["--gamma-span", "2"], "gamma_span is 2.0; it must be between 0 and 1"),
        (["--bank-images", "0"], "bank_images is 0"),
        (["--transfer-steps", "-1"], "steps is -1"),
        (["--transfer-lr", "0"], "lr is 0.0"),
        (["--transfer-from", "scratch", "--transfer", "fine-sigma"], "fine-sigma needs base models of fine"),
        (["--target", "digits"], "target 'digits' is what the base models learned already"),
        (["--batch-size", "4", "--source-ratio", "0.9"], "leaves no target image in a batch of 4"),
        (["--transfer-from", "magic"], "--transfer-from 'magic' is not among --initializations fine,scratch"),
        (["--parameterization", "typo"], "'typo' is not"),
        (["--patch-size", "3"], "input_size 8 is not divisible by patch_size 3"),
        (["--seeds", "-1"], "seeds must be 0 or more"),
        (["--rank-ratio", "0"], "rank_ratio is 0.0; it must be positive"),
        (["--num-samples", "1"], "num_samples is 1"),
        (["--metrics", "fid,fdd"], "unknown metric 'fdd'; choose from fid, sfid, kid"),
        (["--metrics", "kid,mind"], "metrics are kid, mind; fid must be among them"),
        (["--metrics", "fid,sfid"], "sfid needs spatial features, which the extractor does not give; leave sfid out"),
        (["--sampling-steps", "0"], "sampling_steps is 0"),
        (["--guidance-scale", "0.5"], "guidance_scale is 0.5"),
        (["--workers-per-trial", "3"], "batch_size 64 does not divide among 3 workers"),
        (["--workers-per-trial", "0"], "workers_per_trial is 0"),
        (["--runner", "tune", "--workers-per-trial", "2"], "use --runner train"),
        (["--runner", "tune", "--source-workers", "2"], "use --runner train"),
        (["--workers-per-trial", "64"], "64 workers need 64 CPUs"),
        (["--gpus-per-worker", "1"], "do not fit on this machine's 0"),
        (["--gpus-per-worker", "many"], "'many' is not auto, and no number such as 1 or 0.5"),
        (["--precision", "tf32"], "precision tf32 is of NVIDIA GPUs; choose fp32 or bf16 on a CPU"),
        (["--sampling-precision", "tf32"], "precision tf32 is of NVIDIA GPUs"),
        (["--micro-batch", "5"], "--micro-batch 5 does not divide the 64 samples of a worker"),
        (["--cpus-per-worker", "0"], "cpus_per_worker is 0; it must be at least 1"),
        (["--micro-batch", "0"], "micro_batch is 0; it must be at least 1"),
        (["--gpus-per-worker", "0.5", "--workers-per-trial", "2"], "workers that share a GPU"),
        (["--grad-clip", "0"], "grad_clip is 0.0"),
        (["--tracking-uri", "http://127.0.0.1:abc"], "does not answer"),
        (["--sampler", "euler"], "'euler' is not one of"),
        (["--nonsense"], "No such option"),
        (["--storage-path", "/proc/nowhere"], "storage path '/proc/nowhere' cannot be written"),
        (["--tracking-uri", "./mlruns"], "is a plain folder; use sqlite:///"),
        (["--tracking-uri", "sqlite:////proc/x.db"], "cannot be opened"),
        (["--tracking-uri", "s3://bucket"], "cannot be opened"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    where = [] if "--storage-path" in arguments else ["--storage-path", str(tmp_path)]
    result = invoke(*arguments, *where)
    assert result.exit_code == 2
    lines = result.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], result.output


def test_an_absent_tracking_server_is_named_before_anything_starts(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = invoke("--tracking-uri", uri, "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "does not answer" in result.output and "mlflow server" in result.output


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "x.db").write_text("not a database, whatever its name says, and long enough to be read as one" * 20)
    result = invoke("--tracking-uri", f"sqlite:///{tmp_path}/x.db", "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1 and "cannot be opened" in result.output


def test_the_fidelity_ladder_sets_what_is_not_given(tmp_path):
    def scored(*arguments: str):
        with main.make_context("size_grid", list(arguments)) as context:
            grid = grid_from(context.params)
        return grid.num_samples, grid.sampler.sampler, grid.sampler.sampling_steps, grid.sampler.guidance_scale

    assert scored() == scored("--eval", "quick") == (1000, "dpm-solver++", 15, 1.0)
    assert scored("--eval", "paper") == scored("--eval", "paper", "--preset", "demo") == (50_000, "ddpm-dit", 250, 1.5)
    assert scored("--num-samples", "200", "--eval", "standard") == (200, "ddim", 50, 1.5)
    shares = []
    for fidelity in ("quick", "standard", "paper"):
        result = invoke("--dry-run", "--eval", fidelity, "--storage-path", str(tmp_path))
        shares.append(int(re.search(r"MAC \((\d+)% of it to score\)", result.output)[1]))
    assert shares == sorted(set(shares)) and shares[-1] > 90, "the dry run says what a finer score costs"
    assert invoke("--eval", "perfect").exit_code == 2


def test_metrics_are_part_of_a_score_but_not_of_its_protocol_or_of_what_is_forgotten():
    def point(*arguments: str):
        with main.make_context("size_grid", list(arguments)) as context:
            grid = grid_from(context.params)
        return grid.point(grid.transferred("full", grid.transfer.settings_of("full")[0], **where))

    where = {"start": "fine", "depth": 2, "width": 32, "seed": 0}
    default, named, other = point(), point("--metrics", ",".join(DEFAULT_METRICS)), point("--metrics", "mind,fid")
    assert default.score.id == named.score.id != other.score.id and default.forgetting == other.forgetting
    assert other.score.evaluation.metrics == ("fid", "mind")
    protocols = {Protocol.of(p.score.evaluation, extractor="e", reference="r") for p in (default, other)}
    assert len(protocols) == 1


def curve(*arguments: str):
    return CliRunner().invoke(forgetting_curve, list(arguments))


def test_a_curve_plans_one_size_of_the_grid_and_reuses_its_jobs(tmp_path):
    result = curve("--dry-run", "--size", "L2-D64", "--transfer", "full,difffit", "--storage-path", str(tmp_path))
    assert result.exit_code == 0 and "3 points; 30 of 30 jobs to compute" in result.output
    points = planned_points(result.output)
    for method in ("full", "difffit"):  # of the ten shares, that of no steps is the point's own score
        label = f"{method} L2-D64 from fine seed 0"
        assert label in points and sum(point.startswith(f"score of {label}, ") for point in points) == 9
    planned = {job.id for job in plan_grid(preset_grid("demo")).jobs}
    demo = preset_grid("demo")
    one_size = demo.point(demo.base_model("fine", 2, 64, 0))
    assert {job.id for job in (*one_size.task.jobs, *one_size.task.needs)} <= planned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "L3-D64"], "the grid has no size 'L3-D64'; choose one of L2-D32"),
        (["--transfer", "none"], "there is no curve without a transfer"),
        (["--shares", "a"], "'a' is not a list of shares"),
        (["--shares", "0,2"], "each must be between 0 and 1"),
        (["--target", "digits-16", "--transfer", "full"], "has never seen images as large"),
    ],
)
def test_bad_input_of_the_curve_is_one_line(arguments, message, tmp_path):
    result = curve(*arguments, "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1 and message in result.output, result.output


def search(*arguments: str):
    return CliRunner().invoke(schedule_search, list(arguments))


def test_a_dry_run_of_a_search_prints_its_space_and_starts_no_study(tmp_path):
    options = ["--depths", "2,4", "--widths", "32", "--size", "all", "--storage-path", str(tmp_path)]
    result = search("--dry-run", "--trials", "30", *options)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    for text in (
        "family linear, power, complement, cosine, constant, cutoff",
        "power 0.1 to 3 family power",
        "cutoff 50 to 950 family cutoff",
        "retention_weight 0.01 to 2 (log)",
        "sigma_steps 0, 100, 200",
        "base fine L4-D32 seed 0, 200 sigma steps",
        "tried first: family linear, retention_weight 0.1, source_ratio 0.2, lr 0.003, sigma_steps 100; family linear",
        "early stopping: at step 33 and 99 of 300 one in 3 goes on, by the FID of 250 samples",
        "60 trials; 14 of 14 jobs to compute",  # the source's extractor scores nothing here
        "Search space of diff-tuning at L2-D32, L4-D32",
    ):
        assert text in printed, result.output
    assert list(tmp_path.iterdir()) == []
    several = search("--dry-run", "--objectives", "fid,forgetting", *options)
    assert "early stopping: none, as several objectives have no order to stop by" in several.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objectives", "speed"], "unknown objective 'speed'; choose from fid, sfid"),
        (["--trials", "0"], "trials is 0; it must be at least 1"),
        (["--max-params", "10"], "no point keeps to params_total <= 10; the least is params_total 479,364"),
        (["--max-serve-bytes", "1kB", "--method", "difffit"], "no point keeps to serve_bytes <= 1,000; the least is"),
        (["--max-serve-bytes", "30 apples"], "'30 apples' is not a number of bytes such as 500000, 500kB or 30MB"),
        (["--study-storage", "sqlite:////nowhere/at/all.db"], "study storage 'sqlite:////nowhere/at/all.db' cannot be used"),
        (["--study-storage", "nonsense"], "cannot be used"),
        (["--method", "magic"], "unknown transfer 'magic'"),
        (["--method", "none"], "unknown transfer 'none'"),
        (["--schedule", "@best.json"], "unknown schedule '@best.json'; choose one of linear"),
        (["--size", "L9-D9"], "the grid has no size 'L9-D9'"),
        (["--schedule", "power:9"], "power 9.0 is outside its search range: 0.1 to 3"),
        (["--enqueue", "lr=7"], "lr 7.0 is outside its search range"),
        (["--sampler", "grid"], "'grid' is not one of 'auto'"),
        (["--source-seeds", "0,1"], "a search pre-trains with one source seed; name one with --source-seeds"),
        (["--parameters", "speed"], "unknown parameter 'speed'"),
        (["--objectives", "fid,serve_bytes"], "stores the same bytes; search several sizes (--size all)"),
        (["--objectives", "fid,sfid"], "sfid needs spatial features, which the extractor does not give; leave sfid out"),
        (["--target", "digits-16", "--method", "full", "--objectives", "fid,forgetting"], "forgetting cannot be measured"),
        (["--transfer-steps", "0"], "has no training steps to search over"),
        (["--seed", "-1"], "seeds must be 0 or more"),
    ],
)
def test_bad_input_of_a_search_is_one_line(arguments, message, tmp_path):
    result = search(*arguments, "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1 and message in result.output, result.output


def test_a_study_of_another_space_is_named_before_anything_starts(tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    spec = plan_search_of("--study", "mine").studies[0]
    ScheduleStudy(spec, Store(tmp_path), storage)
    result = search("--study", "mine", "--parameters", "lr", "--study-storage", storage, "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "study 'mine-diff-tuning-L6-D64' exists with another search space; take another --study" in result.output


def plan_search_of(*arguments: str):
    with schedule_search.make_context("schedule_search", list(arguments)) as context:
        return request(context.params).plan


def test_a_bad_schedules_file_is_named(tmp_path):
    result = invoke("--schedules", f"@{tmp_path}/best.json", "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and result.output.count("\n") == 1 and "cannot be read: No such file" in result.output


def test_lora_without_peft_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("trainables.methods.base.find_spec", lambda name: None)
    result = invoke("--transfer", "lora-r8", "--storage-path", str(tmp_path))
    assert result.exit_code == 2 and "needs peft: pip install -c constraints.txt -e '.[lora]'" in result.output


def grid(**changes):
    return replace(preset_grid("demo"), **{"transfer": None, "depths": (2, 4), "widths": (32, 64), **changes})


def test_one_learngene_serves_all_sizes_and_seeds():
    plan = plan_grid(grid(seeds=(0, 1)))
    assert [task.job.kind for task in plan.stages["source"]].count("learngene") == 1 and len(plan.stages["base"]) == 16
    learngene = next(task.job for task in plan.stages["source"] if task.job.kind == "learngene")
    assert (learngene.model.size.depth, learngene.model.size.width, learngene.nested_widths) == (4, 64, (32,))
    sliced = preset_grid("demo").options.changed({"fine.width_mode": "slice"})
    assert grid(options=sliced).learngene.nested_widths == ()


def test_scratch_alone_needs_no_learngene():
    assert [task.job.kind for task in plan_grid(grid(methods=("scratch",))).stages["source"]] == ["extractor"]


def test_the_same_grid_is_the_same_sweep_and_long_trials_come_first():
    plan = plan_grid(grid())
    assert plan.sweep_id == plan_grid(grid()).sweep_id != plan_grid(grid(steps=301)).sweep_id
    costs = [task_core_s(task) for task in plan.stages["base"]]
    assert costs == sorted(costs, reverse=True) and costs[0] > 2 * costs[-1]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (main, ["--methods", "scratch"], ["--initializations", "scratch"]),
        (main, ["--sampler", "ddim"], ["--image-sampler", "ddim"]),
        (
            forgetting_curve,
            ["--methods", "fine", "--sampler", "ddim"],
            ["--initializations", "fine", "--image-sampler", "ddim"],
        ),
        (schedule_search, ["--methods", "fine"], ["--initializations", "fine"]),
        (schedule_search, ["--method", "difffit"], ["--transfer", "difffit"]),
        (schedule_search, ["--sampler", "random"], ["--study-sampler", "random"]),
    ],
)
def test_options_by_their_old_names_do_the_same_and_are_not_shown(command, old, new, tmp_path):
    def invoked(*arguments: str):
        return CliRunner().invoke(command, [*arguments, "--depths", "2", "--widths", "32", "--storage-path", str(tmp_path)])

    before, after, plain = invoked("--dry-run", *old), invoked("--dry-run", *new), invoked("--dry-run")
    assert before.exit_code == after.exit_code == 0, before.output + after.output
    assert before.output == after.output and (after.output != plain.output or new[1] == "fine")
    shown = set(re.findall(r"--[a-z-]+", CliRunner().invoke(command, ["--help"]).output))
    assert not set(old[::2]) & shown and set(new[::2]) <= shown


def grid_of(*arguments: str):
    with main.make_context("size_grid", list(arguments)) as context:
        return grid_from(context.params)


def test_the_source_domain_is_scored_after_a_transfer_as_it_was_asked_for():
    own = ("--eval", "paper", "--num-samples", "2000", "--depths", "2", "--widths", "32")

    def protocols(*arguments: str):
        """(samples, sampler, guidance) of the scores on the source domain under the null label, after and before."""
        plan = plan_grid(grid_of(*own, *arguments))
        scores = [score for task in plan.tasks for score in task.scores]
        assert len(plan.stages["transfer"]) == 4 and sum(not score.evaluation.unconditional for score in scores) == len(
            plan.points
        )
        source = [score for score in scores if score.evaluation.unconditional]
        assert all(score.dataset == "digits" for score in source)
        assert [score.trained.kind for score in source].count("transfer") in (0, 4)
        assert len(source) in (0, 5), "one of the base model serves all its transfers"
        return {(score.evaluation.num_samples, score.evaluation.sampler.sampler) for score in source}

    assert protocols("--forgetting", "none") == set()
    assert protocols("--forgetting", "same") == {(2000, "ddpm-dit")}
    assert protocols("--forgetting", "quick") == protocols() == {(1000, "dpm-solver++")}
    assert grid_of("--forgetting", "quick", "--num-samples", "200").forgetting.num_samples == 200, (
        "never more than the target's"
    )
    assert invoke("--forgetting", "all").exit_code == 2


def test_the_order_of_the_options_does_not_make_another_sweep():
    assert plan_grid(grid(methods=("scratch", "fine"), seeds=(1, 0))).sweep_id == plan_grid(grid(seeds=(0, 1))).sweep_id


def test_a_transfer_stage_shares_banks_and_takes_what_each_method_needs():
    demo = preset_grid("demo").transfer
    schedules = ChosenOptions(values={**demo.options.values, "diff-tuning.schedule": ("linear", "power:0.5")})
    plan = plan_grid(grid(transfer=replace(demo, options=schedules)))
    assert len(plan.stages["base"]) == 8 and len(plan.stages["bank"]) == 4, "one bank per base model of FINE"
    transfers = [task.job for task in plan.stages["transfer"]]
    assert len(transfers) == 4 * 5 and {job.initialization.name for job in transfers} == {"fine"}
    assert sorted(task.job.dataset for task in plan.stages["source"] if task.job.kind == "extractor") == [
        "digits",
        "digits-rotated-few",
    ]
    by_method = {job.method_label: job for job in transfers}
    assert by_method["difffit"].training.lr == pytest.approx(10 * by_method["full"].training.lr)
    assert by_method["full"].bank is None and by_method["full"].options == ()
    assert by_method["diff-tuning linear"].bank == by_method["diff-tuning power:0.5"].bank
    assert list(plan.stages) == ["source", "base", "bank", "transfer"]


def test_options_that_a_method_does_not_use_do_not_make_another_point():
    def ids(**changes):
        transfer = replace(preset_grid("demo").transfer, methods=("full", "difffit"), **changes)
        tasks = plan_grid(grid(transfer=transfer)).stages["transfer"]
        return {task.id for task in tasks if task.job.method == "full"}

    others = preset_grid("demo").transfer.options.changed({"difffit.gamma_span": 1.0, "diff-tuning.retention_weight": 0.7})
    assert ids() == ids(options=others, bank_images=9) != ids(steps=7)


def test_several_values_of_an_option_are_several_points_with_names_of_their_own():
    plan = plan_grid(grid_of("--transfer", "difffit,lora,lora-r16", "--difffit-gamma-span", "0.5,1", "--lora-rank", "2,4"))
    labels = [job.method_label for job in (task.job for task in plan.stages["transfer"]) if job.size.name == "L6-D64"]
    assert sorted(labels) == ["difffit", "difffit gamma span 1.0", "lora r16", "lora r2", "lora r4"]
    names = {plan.names.of(point.model) for point in plan.points}
    assert {"lora r2", "lora r4", "lora r16"} <= names, "seeds alone are averaged"


def test_gradient_clipping_reaches_the_specs():
    trial = plan_grid(grid(grad_clip=0.5)).stages["base"][0].job
    assert trial.training.grad_clip == 0.5 and trial.initialization.learngene.training.grad_clip == 0.5
