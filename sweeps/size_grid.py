"""Size grid: every method at every depth and width, ending in a size-versus-FID front."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import click
from rich.console import Console

from fine_core.data import DATASETS
from fine_core.learngene import SIGMA_INITS, WIDTH_MODES
from fine_core.sampling import SAMPLERS, SamplerSpec
from mlflow_setup.tracking import open_tracking, resolve_tracking_uri
from sweeps.monitor import show_plan
from sweeps.planning import GridSpec, plan_grid
from sweeps.running import RUNNERS, RunnerSpec, num_cpus
from trainables.initializations import INITIALIZATIONS
from trainables.store import Store

LOG_WIDTH = 120
DEFAULT_DATA_FOLDER = Path("~/fine-sweeps-data")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of the options of the same names."""

    depths: str
    widths: str
    head_dim: int
    methods: str = "fine,scratch"
    dataset: str = "digits"
    seeds: str = "0"
    patch_size: int = 2
    steps: int
    batch_size: int
    lr: float
    ema_decay: float
    grad_clip: float | None = None
    sigma_init: str = "linear"
    sigma_steps: int
    sigma_lr: float = 1e-2
    width_mode: str = "nested"
    source_steps: int
    rank_ratio: float = 1.0
    num_samples: int
    sampler: str = "dpm-solver++"
    sampling_steps: int
    guidance_scale: float = 1.0
    gpus_per_worker: float = 0.0
    checkpoint_every_steps: int = 100


# The demo takes minutes on a laptop; dit-b has the step counts of the FINE paper's DiT-B experiments, and widths besides.
PRESETS = {
    "demo": Preset(
        depths="2,4,6",
        widths="32,64",
        head_dim=16,
        steps=300,
        batch_size=64,
        lr=4e-3,
        ema_decay=0.99,
        sigma_steps=100,
        source_steps=3000,
        num_samples=1000,
        sampling_steps=15,
    ),
    "dit-b": Preset(
        depths="4,6,8,10,12",
        widths="384,576,768",
        head_dim=64,
        steps=100_000,
        batch_size=64,
        lr=1e-4,
        ema_decay=0.9999,
        sigma_steps=300,
        source_steps=300_000,
        num_samples=10_000,
        sampling_steps=50,
        gpus_per_worker=1.0,
        checkpoint_every_steps=1000,
    ),
}


def _integers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 2,4,6") from None


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def _preset_defaults(context: click.Context, parameter: click.Parameter, value: str) -> str:
    preset = PRESETS[value]
    context.default_map = {field.name: getattr(preset, field.name) for field in fields(preset)}
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


@click.command(
    cls=OneLineErrors, epilog="Example: python sweeps/size_grid.py --depths 2,4 --widths 32 --seeds 0,1,2 --storage-path ~/runs"
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="demo",
    is_eager=True,
    callback=_preset_defaults,
    show_default=True,
    help="Defaults of all options below.",
)
@click.option("--depths", callback=_integers, help="Numbers of blocks, such as 2,4,6.")
@click.option("--widths", callback=_integers, help="Numbers of channels, multiples of --head-dim.")
@click.option("--head-dim", type=int, help="Channels of one attention head, the same at all widths.")
@click.option("--methods", callback=_names, help=f"Initializations to compare: {', '.join(INITIALIZATIONS)}.")
@click.option("--dataset", help=f"Images to learn: {', '.join(DATASETS)}.")
@click.option("--seeds", callback=_integers, help="Every point is repeated for each seed.")
@click.option("--patch-size", type=int, help="Pixels of a patch's side.")
@click.option("--steps", type=int, help="Training steps of every point, sigma steps included.")
@click.option("--batch-size", type=int, help="Images of a training step, over all workers.")
@click.option("--lr", type=float, help="Learning rate of AdamW.")
@click.option("--grad-clip", type=float, help="Largest norm of the gradient.  [default: no clipping]")
@click.option("--ema-decay", type=float, help="Decay of the averaged weights, which are scored and saved.")
@click.option("--sigma-init", type=click.Choice(SIGMA_INITS), help="FINE: first values of sigma.")
@click.option("--sigma-steps", type=int, help="FINE: steps that train sigma alone (0: none).")
@click.option("--sigma-lr", type=float, help="FINE: learning rate of the sigma steps.")
@click.option("--width-mode", type=click.Choice(WIDTH_MODES), help="FINE: widths trained as prefixes, or sliced afterwards.")
@click.option("--source-steps", type=int, help="FINE: steps that pre-train the learngene.")
@click.option("--rank-ratio", type=float, help="FINE: rank of the factors over the learngene's width.")
@click.option("--num-samples", type=int, help="Images drawn to score a point.")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="How they are drawn.")
@click.option("--sampling-steps", type=int, help="Denoising steps of an image.")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance (1: none).")
@click.option("--storage-path", help=f"Folder or URI for results and checkpoints.  [default: {DEFAULT_DATA_FOLDER}]")
@click.option("--tracking-uri", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else SQLite in the storage path]")
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="auto",
    show_default=True,
    help="Ray Train worker groups, or one CPU worker inside the Tune trial.",
)
@click.option("--workers-per-trial", type=int, default=1, show_default=True, help="Data-parallel workers of a trial.")
@click.option("--source-workers", type=int, help="Workers that pre-train the learngene.  [default: the whole cluster]")
@click.option("--gpus-per-worker", type=float, help="GPUs of a worker; may be a fraction.")
@click.option("--max-concurrent", type=int, help="Trials at a time.  [default: as many as the cluster holds]")
@click.option("--checkpoint-every-steps", type=int, help="Steps that an interruption may cost.")
@click.option("--dry-run", is_flag=True, help="Print every point with its cost; compute nothing.")
def main(**options) -> None:
    """Train every method at every depth x width, score it, and report the size-versus-FID front.

    The same command again computes only what is missing. Without options it runs a demo on embedded data.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)  # a job's log has no width of its own
    try:
        grid = _grid(options)
        plan = plan_grid(grid)
        runner = RunnerSpec(
            runner=options["runner"],
            workers_per_trial=options["workers_per_trial"],
            gpus_per_worker=options["gpus_per_worker"],
            max_concurrent=options["max_concurrent"],
            source_workers=options["source_workers"],
            checkpoint_every_steps=options["checkpoint_every_steps"],
        )
        batch_size, workers = grid.batch_size, runner.workers_per_trial
        if batch_size % workers:
            raise ValueError(f"batch_size {batch_size} does not divide among {workers} workers; use a multiple of {workers}")
        store = Store(options["storage_path"] or DEFAULT_DATA_FOLDER)
        store.check_writable()
        data_folder = Path(store.root) if store.is_local else DEFAULT_DATA_FOLDER.expanduser()
        tracking_uri = resolve_tracking_uri(options["tracking_uri"], data_folder)
        finished = {job.id for job in plan.jobs if store.read_record(job)}
        slots = None if runner.gpus_per_worker else num_cpus()
        if options["dry_run"]:
            show_plan(console, plan, finished, slots=slots)
            return
        if not os.environ.get("RAY_ADDRESS"):
            runner.check_this_machine()
        tracking = open_tracking(tracking_uri, "size-grid", data_folder)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    show_plan(console, plan, finished, slots=slots)
    from sweeps.sweep import Sweep  # imports Ray, which a dry run does not need

    sweep = Sweep(
        "size-grid",
        plan,
        {field.name: getattr(grid, field.name) for field in fields(grid)},
        store=store,
        tracking=tracking,
        runner=runner,
        data_folder=data_folder,
        console=console,
    )
    try:
        sys.exit(sweep.run())
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing finished is lost; run the same command again to go on:")
        console.print(f"  {' '.join(['python', *sys.argv])}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(130)


def _grid(options: dict) -> GridSpec:
    """The grid that the options describe. Raises ValueError."""
    sampler = SamplerSpec(
        sampler=options["sampler"],
        sampling_steps=options["sampling_steps"],
        guidance_scale=options["guidance_scale"],
    )
    names = {field.name for field in fields(GridSpec)} - {"sampler"}
    return GridSpec(sampler=sampler, **{name: options[name] for name in names})


def demo_grid() -> GridSpec:
    """The grid of the demo preset, for benchmarks."""
    values = {field.name: getattr(PRESETS["demo"], field.name) for field in fields(Preset)}
    lists = {name: tuple(int(part) for part in values[name].split(",")) for name in ("depths", "widths", "seeds")}
    return _grid({**values, **lists, "methods": tuple(values["methods"].split(","))})


if __name__ == "__main__":
    main()
