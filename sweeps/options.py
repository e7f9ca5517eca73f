"""The options that sweeps share, and what they describe: a grid, a runner, an open store and tracking."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from filelock import FileLock
from rich.console import Console

from fine_core.data import DATASETS
from fine_core.data_by_path import is_by_path
from fine_core.learngene import SIGMA_INITS, WIDTH_MODES
from fine_core.sampling import SAMPLERS, SamplerSpec
from mlflow_setup.tracking import open_tracking, resolve_tracking_uri
from sweeps.brought import DEFAULT_IMAGE_SIZE, Brought, brought_by, dataset_named
from sweeps.cleaning import clean
from sweeps.cluster import NoCapacity, is_joined, num_cpus
from sweeps.disk import check_disk, disk_need
from sweeps.errors import StoppedSweep, without_password
from sweeps.monitor import show_plan
from sweeps.planning import Found, GridSpec, Plan, find_jobs
from sweeps.presets import DEFAULT_TARGETS, EVALUATIONS, PRESETS
from sweeps.running import RUNNERS, RunnerSpec
from sweeps.settings import read_tuned
from sweeps.transfer_planning import TransferGridSpec
from trainables.initializations import INITIALIZATIONS
from trainables.methods import TRANSFER_METHODS
from trainables.store import Store
from trainables.transfer_spec import WEIGHTINGS

if TYPE_CHECKING:
    from sweeps.sweep import Sweep

LOG_WIDTH = 130
DEFAULT_DATA_FOLDER = Path("~/fine-sweeps-data")
NO_TRANSFER = "none"
BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def integers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 2,4,6") from None


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def byte_count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of bytes such as 500000, 500kB or 30MB."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
    if match is None or match[2] not in BYTE_UNITS:
        raise click.BadParameter(f"{value!r} is not a number of bytes such as 500000, 500kB or 30MB")
    return round(float(match[1]) * BYTE_UNITS[match[2]])


def _preset_defaults(context: click.Context, parameter: click.Parameter, value: str) -> str:
    preset = PRESETS[value]
    context.default_map = {field.name: getattr(preset, field.name) for field in fields(preset)}
    return value


def _evaluation_defaults(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Options that are given are processed before the defaults of the others: these become the ladder's."""
    if value is not None:
        context.default_map = {**context.default_map, **vars(EVALUATIONS[value])}
    return value


class OneLineErrors(click.Command):
    """A command whose usage errors are one line, like its other errors."""

    def main(self, *args, **options):
        try:
            return super().main(*args, **{**options, "standalone_mode": False})
        except click.UsageError as error:
            click.echo(f"error: {error.format_message()}", err=True)
            sys.exit(2)
        except click.Abort:  # Ctrl-C before anything was started
            sys.exit(130)


_OPTIONS = [
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default="demo",
        is_eager=True,
        callback=_preset_defaults,
        show_default=True,
        help="Defaults of all options below.",
    ),
    click.option("--depths", callback=integers, help="Numbers of blocks, such as 2,4,6."),
    click.option("--widths", callback=integers, help="Numbers of channels, multiples of --head-dim."),
    click.option("--head-dim", type=int, help="Channels of one attention head, the same at all widths."),
    click.option(
        "--methods",
        callback=names,
        help=f"Initializations to compare: {', '.join(INITIALIZATIONS)}.  [default: fine,scratch; with --source given too]",
    ),
    click.option("--dataset", help=f"Images to learn: imagefolder:PATH, parquet:PATH, or {', '.join(DATASETS)}."),
    click.option(
        "--image-size",
        type=int,
        help=f"Side that images by path are cropped to.  [default: --source's, or {DEFAULT_IMAGE_SIZE}]",
    ),
    click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror half of the images by path."),
    click.option("--seeds", callback=integers, help="Every point is repeated for each seed."),
    click.option("--patch-size", type=int, help="Pixels of a patch's side."),
    click.option("--steps", type=int, help="Training steps of every base model, sigma steps included."),
    click.option("--batch-size", type=int, help="Images of a training step, over all workers."),
    click.option("--lr", type=float, help="Learning rate of AdamW."),
    click.option("--grad-clip", type=float, help="Largest norm of the gradient.  [default: no clipping]"),
    click.option("--ema-decay", type=float, help="Decay of the averaged weights, which are scored and saved."),
    click.option("--sigma-init", type=click.Choice(SIGMA_INITS), help="FINE: first values of sigma."),
    click.option("--sigma-steps", type=int, help="FINE: steps that train sigma alone (0: none)."),
    click.option("--sigma-lr", type=float, help="FINE: learning rate of the sigma steps."),
    click.option(
        "--width-mode", type=click.Choice(WIDTH_MODES), help="FINE: widths trained as prefixes, or sliced afterwards."
    ),
    click.option("--source-steps", type=int, help="FINE: steps that pre-train the learngene."),
    click.option("--rank-ratio", type=float, help="FINE: rank of the factors over the learngene's width."),
    click.option(
        "--source", help="A model to decompose for FINE: public .pt, diffusers folder, .safetensors.  [default: none]"
    ),
    click.option("--source-num-heads", type=int, help="Heads of a public checkpoint of an unpublished size."),
    click.option("--als-sweeps", type=int, help="--source: sweeps of alternating least squares of the decomposition."),
    click.option("--teacher-weight", type=float, help="--source: weight of its outputs while the learngene is trained."),
    click.option(
        "--eval",
        type=click.Choice(list(EVALUATIONS)),
        callback=_evaluation_defaults,
        help="Fidelity of the scores: defaults of the four options below.  [default: the preset's]",
    ),
    click.option("--inception-weights", help="Score by Inception's features: weights-inception-2015-12-05-6726825d.pth."),
    click.option("--extractor", help="Score by another extractor: TorchScript (.pt), or Python code that is run (.py)."),
    click.option("--reference", help="ADM .npz to compare with.  [default: the images of --dataset]"),
    click.option("--target-reference", help="ADM .npz for --target.  [default: its images]"),
    click.option("--vae", help="Folder of the AutoencoderKL that datasets of latents were encoded by."),
    click.option("--num-samples", type=int, help="Images drawn to score a point."),
    click.option("--sampler", type=click.Choice(SAMPLERS), help="How they are drawn."),
    click.option("--sampling-steps", type=int, help="Denoising steps of an image."),
    click.option("--guidance-scale", type=float, help="Classifier-free guidance (1: none)."),
    click.option("--transfer", callback=names, help=f"Transfer methods: {', '.join(TRANSFER_METHODS)}; or {NO_TRANSFER}."),
    click.option(
        "--target",
        help="Dataset to take the base models to, as for --dataset.  "
        f"[default: {', '.join(f'{target} for {dataset}' for dataset, target in DEFAULT_TARGETS.items())}; else none]",
    ),
    click.option("--transfer-from", callback=names, help="Whose base models.  [default: fine, or all --methods without it]"),
    click.option("--transfer-steps", type=int, help="Training steps of a transfer."),
    click.option(
        "--transfer-lr", type=float, help="Learning rate of full fine-tuning; DiffFit, LoRA and others take ten times it."
    ),
    click.option(
        "--schedules",
        callback=names,
        help="Diff-Tuning: linear, power:S, complement:S, cosine, constant, cutoff:T; @FILE: what schedule_search.py found.",
    ),
    click.option("--weighting", type=click.Choice(WEIGHTINGS), help="Diff-Tuning: schedules draw timesteps, or weigh losses."),
    click.option("--retention-weight", type=float, help="Diff-Tuning: weight of the rehearsed images' loss."),
    click.option("--source-ratio", type=float, help="Diff-Tuning: share of a batch that is rehearsed."),
    click.option("--gamma-span", type=float, help="DiffFit: share of the blocks, from the first, that have scales."),
    click.option("--bank-images", type=int, help="Images of a knowledge bank."),
    click.option("--bank-sampler", type=click.Choice(SAMPLERS), help="How they are drawn."),
    click.option("--bank-sampling-steps", type=int, help="Denoising steps of an image of the bank."),
    click.option("--bank-guidance-scale", type=float, help="Guidance of the bank's images."),
    click.option("--storage-path", help=f"Folder or URI for results and checkpoints.  [default: {DEFAULT_DATA_FOLDER}]"),
    click.option("--tracking-uri", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else SQLite in the storage path]"),
    click.option(
        "--runner",
        type=click.Choice(RUNNERS),
        default="auto",
        show_default=True,
        help="Ray Train worker groups, or one CPU worker inside the Tune trial.",
    ),
    click.option("--workers-per-trial", type=int, default=1, show_default=True, help="Data-parallel workers of a trial."),
    click.option("--source-workers", type=int, help="Workers that pre-train the learngene.  [default: the whole cluster]"),
    click.option("--gpus-per-worker", type=float, help="GPUs of a worker; may be a fraction."),
    click.option("--max-concurrent", type=int, help="Trials at a time.  [default: what fits; more wait on a joined cluster]"),
    click.option("--checkpoint-every-steps", type=int, help="Steps that an interruption may cost."),
    click.option("--disk-budget", callback=byte_count, help="Refuse to start if the storage path would outgrow it: 50GB."),
    click.option("--dry-run", is_flag=True, help="Print every point with its cost; compute nothing."),
]


def grid_options(*, without: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """Give a command the options of a size grid, but for those that it has of its own or makes no use of."""

    def add(command: Callable) -> Callable:
        for option in reversed(_OPTIONS):
            command = option(command)
        command.__click_params__ = [p for p in command.__click_params__ if p.name not in without]
        return command

    return add


def grid_from(options: dict[str, Any]) -> GridSpec:
    """The grid that the options describe. Raises ValueError."""
    sampler = SamplerSpec(
        sampler=options["sampler"],
        sampling_steps=options["sampling_steps"],
        guidance_scale=options["guidance_scale"],
    )
    brought = brought_by(options)
    taken = {"sampler": sampler, "source": brought.source, "scoring": brought.scoring}
    taken["dataset"] = dataset_named(options["dataset"], options, brought)
    if _is_given("image_size") and not any(is_by_path(options[name] or "") for name in ("dataset", "target")):
        raise ValueError("--image-size is of images by path; the built-in sets have their own, leave it out")
    taken["methods"] = options["methods"] or (("fine", "scratch") if brought.source is None else ("given", "fine", "scratch"))
    if brought.source is not None:
        taken["head_dim"] = brought.source.model.size.head_dim  # heads keep their size at all widths
    own = {field.name for field in fields(GridSpec)} - {*taken, "transfer"}
    grid = GridSpec(**taken, **{name: options[name] for name in own})
    return replace(grid, transfer=_transfer_from(options, grid.methods, brought))


def _transfer_from(options: dict[str, Any], named: tuple[str, ...], brought: Brought) -> TransferGridSpec | None:
    target = options["target"] or DEFAULT_TARGETS.get(options["dataset"])
    if options["transfer"] == (NO_TRANSFER,):
        return None
    if target is None:
        for name in ("transfer", "target_reference"):
            if _is_given(name):
                raise ValueError(f"--{name.replace('_', '-')} needs a target for {options['dataset']}; name one with --target")
        return None
    bank_sampler = SamplerSpec(
        sampler=options["bank_sampler"],
        sampling_steps=options["bank_sampling_steps"],
        guidance_scale=options["bank_guidance_scale"],
    )
    chosen = options["transfer_from"] or tuple(name for name in named if name == "fine") or named
    for name in chosen:
        if name not in named:
            raise ValueError(f"--transfer-from {name!r} is not among --methods {','.join(named)}")
    files = [Path(text[1:]) for text in options["schedules"] if text.startswith("@")]
    return TransferGridSpec(
        methods=options["transfer"],
        schedules=tuple(text for text in options["schedules"] if not text.startswith("@")),
        tuned=tuple(found for file in files for found in read_tuned(file)),
        initializations=chosen,
        steps=options["transfer_steps"],
        lr=options["transfer_lr"],
        bank_sampler=bank_sampler,
        target=dataset_named(target, options, brought),
        target_reference=brought.target_reference,
        **{name: options[name] for name in ("weighting", "retention_weight", "source_ratio")},
        **{name: options[name] for name in ("gamma_span", "bank_images")},
    )


def _is_given(name: str) -> bool:
    """Whether an option was named on the command line."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) == ParameterSource.COMMANDLINE


def runner_from(options: dict[str, Any], batch_size: int) -> RunnerSpec:
    """Where the jobs run. Raises ValueError."""
    runner = RunnerSpec(
        runner=options["runner"],
        workers_per_trial=options["workers_per_trial"],
        gpus_per_worker=options["gpus_per_worker"],
        max_concurrent=options["max_concurrent"],
        source_workers=options["source_workers"],
        checkpoint_every_steps=options["checkpoint_every_steps"],
    )
    workers = runner.workers_per_trial
    if batch_size % workers:
        raise ValueError(f"batch_size {batch_size} does not divide among {workers} workers; use a multiple of {workers}")
    return runner


@dataclass(frozen=True, kw_only=True)
class Request:
    """A planned sweep and where it runs."""

    grid: GridSpec
    plan: Plan
    runner: RunnerSpec
    params: dict[str, Any] = field(default_factory=dict)  # recorded beside the grid's

    def show(self, console: Console, found: Found, slots: int | None) -> None:
        show_plan(console, self.plan, found, slots=slots)

    def sweep(self, name: str, **surroundings: Any) -> Sweep:
        """The sweep, to be run. Raises ValueError if it cannot be."""
        from sweeps.sweep import Sweep  # imports Ray, which a dry run does not need

        return Sweep(name, self.plan, self.recorded, **surroundings)

    @property
    def recorded(self) -> dict[str, Any]:
        """The grid's fields as they are recorded, those of the transfer stage with a prefix, and the sweep's own."""
        grid = {field.name: getattr(self.grid, field.name) for field in fields(self.grid) if field.name != "transfer"}
        transfer = self.grid.transfer
        if transfer is not None:
            grid |= {f"transfer_{field.name}": getattr(transfer, field.name) for field in fields(transfer)}
        return grid | self.params


def run_sweep(name: str, options: dict[str, Any], request: Callable[[dict[str, Any]], Request]) -> None:
    """Check everything, then show the plan (`--dry-run`) or carry it out; ends the process with the exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)  # a job's log has no width of its own
    try:
        _check_finite(options)
        asked = request(options)
        plan, runner = asked.plan, asked.runner
        _check_permanent("--storage-path", options["storage_path"])
        _check_permanent("--tracking-uri", (options["tracking_uri"] or "").removeprefix("sqlite:///"))
        store = Store(options["storage_path"] or DEFAULT_DATA_FOLDER)
        store.check_writable()
        data_folder = data_folder_of(store)
        tracking_uri = resolve_tracking_uri(options["tracking_uri"], data_folder)
        found = find_jobs(plan, store)
        slots = None if runner.gpus_per_worker else num_cpus()
        if options["dry_run"]:
            asked.show(console, found, slots)
            return
        if options.get("clean"):
            clean(plan, store, console, confirmed=options["yes"])
            return
        check_disk(store, disk_need(plan, found.finished, slots or 1), options["disk_budget"])
        if not is_joined():
            runner.check_this_machine()
        data_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(data_folder / ".databases.lock"):  # sweeps that create a fresh database together all fail
            tracking = open_tracking(tracking_uri, name, data_folder)
            brought_by(options).publish(store)
            sweep = asked.sweep(name, store=store, tracking=tracking, runner=runner, data_folder=data_folder, console=console)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    asked.show(console, found, slots)
    try:
        sys.exit(sweep.run())
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing finished is lost; run the same command again to go on:")
        console.print(f"  {command_line()}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(130)
    except NoCapacity as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except StoppedSweep as error:
        click.echo(f"error: {error}; nothing finished is lost; run the same command again to go on", err=True)
        sys.exit(1)


def command_line() -> str:
    """How this process was called, to be called again; without passwords."""
    return without_password(shlex.join(["python", *sys.argv]))


def data_folder_of(store: Store) -> Path:
    """Where databases and reports lie: beside the results, or at home where these are not on a local disk."""
    return Path(store.root) if store.is_local else DEFAULT_DATA_FOLDER.expanduser()


def _check_finite(options: dict[str, Any]) -> None:
    """Raises ValueError for an option that is infinite or no number."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be a finite number")


def _check_permanent(option: str, path: str | None) -> None:
    """Raises ValueError for a relative path in a Ray job, whose working folder is deleted after it."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job and path and "://" not in path and not Path(path).expanduser().is_absolute():
        raise ValueError(f"{option} {path} would lie in the job's temporary folder; name an absolute path")


def preset_grid(name: str) -> GridSpec:
    """The grid of a preset, for benchmarks."""
    command = click.command()(grid_options()(lambda **options: None))
    return grid_from(command.make_context("preset", ["--preset", name]).params)
