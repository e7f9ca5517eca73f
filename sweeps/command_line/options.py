"""The options that sweeps share, and the grid and runner that they describe."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fine_core.data.by_path import is_by_path
from fine_core.data.readers.registry import formats
from fine_core.data.registry import DATASETS
from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import SAMPLERS
from sweeps.command_line.compute_options import COMPUTE_OPTIONS, computing_from, resolved_gpus, resolved_precision
from sweeps.command_line.folders import DEFAULT_DATA_FOLDER
from sweeps.command_line.inputs import COLUMN_OPTIONS, DEFAULT_IMAGE_SIZE, Inputs, dataset_named, read_inputs
from sweeps.command_line.method_options import chosen_options, click_option, parameter_name
from sweeps.command_line.parsing import RenamedOption, byte_count, integers, names
from sweeps.command_line.presets import DEFAULT_TARGETS, EVALUATIONS, PRESETS
from sweeps.command_line.scores import check_scores
from sweeps.execution.runner import RUNNERS, RunnerSpec
from sweeps.planning.chosen import ChosenOptions, options_of_initializations, options_of_methods
from sweeps.planning.grid import EQUAL_STEPS, GridSpec
from sweeps.planning.settings import read_tuned
from sweeps.planning.transfer_grid import TransferGridSpec
from trainables.initializations import INITIALIZATIONS
from trainables.methods import TRANSFER_ALIASES, TRANSFER_METHODS

NO_TRANSFER = "none"
SCHEDULES = "diff-tuning.schedule"


def _preset_defaults(context: click.Context, parameter: click.Parameter, value: str) -> str:
    preset = PRESETS[value]
    context.default_map = {field.name: getattr(preset, field.name) for field in fields(preset)}
    context.default_map |= {parameter_name(name): given for name, given in preset.options.items()}
    return value


def _evaluation_defaults(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Set the defaults of the four scoring options. Click processes given options first, so the defaults come in time."""
    if value is not None:
        context.default_map = {**context.default_map, **vars(EVALUATIONS[value])}
    return value


_OPTIONS = [
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default="demo",
        is_eager=True,
        callback=_preset_defaults,
        show_default=True,
        help="Named set of defaults for the options below.",
    ),
    click.option("--depths", callback=integers, help="Depths of the grid: numbers of blocks, such as 2,4,6."),
    click.option("--widths", callback=integers, help="Widths of the grid: numbers of channels, multiples of --head-dim."),
    click.option("--head-dim", type=int, help="Channels of one attention head, the same at every width."),
    click.option(
        "--initializations",
        "methods",
        cls=RenamedOption,
        old_names=("--methods",),
        callback=names,
        help=f"Initializations to compare: {', '.join(INITIALIZATIONS)}.  [default: fine,scratch; with --source given too]",
    ),
    click.option("--dataset", help=f"Training images: {formats(', ')}, or {', '.join(DATASETS)}."),
    click.option(
        "--image-size",
        type=int,
        help=f"Side in pixels to which images by path are cropped.  [default: that of --source, or {DEFAULT_IMAGE_SIZE}]",
    ),
    *COLUMN_OPTIONS,
    click.option("--flip/--no-flip", default=True, show_default=True, help="Random mirroring of half of the images by path."),
    click.option("--seeds", callback=integers, help="Seeds for which every point is repeated, such as 0,1,2."),
    click.option("--patch-size", type=int, help="Side of a patch in pixels."),
    click.option(
        "--parameterization",
        type=click.Choice(list(PARAMETERIZATIONS)),
        default="ddpm",
        show_default=True,
        help="What the networks predict and how images are corrupted; with --source always that of the given model.",
    ),
    click.option("--steps", type=int, help="Training steps of every base model; see --equal-steps."),
    click.option(
        "--equal-steps",
        type=click.Choice(EQUAL_STEPS),
        help="What --steps counts: all steps of a base model (total), or those in which all its weights are trained (free).",
    ),
    click.option(
        "--score-at",
        callback=integers,
        help="Steps with all weights trained, such as 0,100,500, after which base models are scored too, and as they start.",
    ),
    click.option(
        "--source-steps",
        cls=RenamedOption,
        old_names=("--fine-source-steps",),
        type=int,
        help="Pre-training steps of what is made once for all sizes: learngenes and ancestors.",
    ),
    click.option("--source-seeds", callback=integers, help="Seeds for which that is repeated, such as 0,1."),
    click.option("--batch-size", type=int, help="Images in a training step, summed over all workers."),
    click.option("--lr", type=float, help="Learning rate of AdamW."),
    click.option("--grad-clip", type=float, help="Gradient norm above which gradients are clipped.  [default: no clipping]"),
    *COMPUTE_OPTIONS,
    click.option("--ema-decay", type=float, help="Decay of the EMA weights, which are scored and saved."),
    click.option(
        "--source",
        help="Given model that FINE decomposes and others inherit from: public .pt, diffusers folder or .safetensors.  "
        "[default: none]",
    ),
    click.option(
        "--source-num-heads", type=int, help="Attention heads of --source, if it is a public checkpoint of an unpublished size."
    ),
    click.option(
        "--source-num-classes", type=int, help="Classes of --source, if it is a public checkpoint whose label table is unclear."
    ),
    *(click_option(kind, item, several=False) for kind in options_of_initializations() for item in kind.fields()),
    click.option(
        "--eval",
        type=click.Choice(list(EVALUATIONS)),
        callback=_evaluation_defaults,
        help="Scoring protocol: sets the defaults of the number of samples and of image sampling.  [default: the preset's]",
    ),
    click.option(
        "--forgetting",
        type=click.Choice(["none", "quick", "same"]),
        help="Source-domain score after a transfer: none, quick (1,000 samples), or the same protocol as the target's.",
    ),
    click.option("--inception-weights", help="Inception weights to score with: weights-inception-2015-12-05-6726825d.pth."),
    click.option(
        "--extractor", help="Other feature extractor to score with: TorchScript (.pt), or Python code that is run (.py)."
    ),
    click.option("--reference", help="Reference statistics for --dataset, as an ADM .npz.  [default: its images]"),
    click.option("--target-reference", help="Reference statistics for --target, as an ADM .npz.  [default: its images]"),
    click.option("--vae", help="Folder of the AutoencoderKL that encoded the datasets of latents."),
    click.option("--num-samples", type=int, help="Images drawn for a score."),
    click.option(
        "--image-sampler",
        "sampler",
        cls=RenamedOption,
        old_names=("--sampler",),
        type=click.Choice(list(SAMPLERS)),
        help="Image sampler of the scores.",
    ),
    click.option("--sampling-steps", type=int, help="Denoising steps per image."),
    click.option("--guidance-scale", type=float, help="Scale of classifier-free guidance (1: none)."),
    click.option(
        "--metrics",
        callback=names,
        help=f"Metrics of the scores, fid among them: {', '.join(METRICS)}.  [default: {', '.join(DEFAULT_METRICS)}]",
    ),
    click.option(
        "--transfer",
        callback=names,
        help=f"Transfer methods: {', '.join((*TRANSFER_METHODS, *TRANSFER_ALIASES))}; or {NO_TRANSFER}.",
    ),
    click.option(
        "--target",
        help="Target domain of the transfers: a dataset, written as for --dataset.  "
        f"[default: {', '.join(f'{target} for {dataset}' for dataset, target in DEFAULT_TARGETS.items())}; else none]",
    ),
    click.option(
        "--transfer-from",
        callback=names,
        help="Initializations whose base models are transferred.  [default: fine, else all of --initializations]",
    ),
    click.option("--transfer-steps", type=int, help="Training steps of a transfer."),
    click.option(
        "--transfer-lr",
        type=float,
        help="Learning rate of full fine-tuning; methods that train few parameters take ten times as much.",
    ),
    *(click_option(kind, item, several=True) for kind in options_of_methods() for item in kind.fields()),
    click.option("--tuned", callback=names, help="Files best.json of schedule_search.py: their settings are done besides."),
    click.option("--bank-images", type=int, help="Images in a knowledge bank."),
    click.option("--bank-sampler", type=click.Choice(list(SAMPLERS)), help="Image sampler of the knowledge bank."),
    click.option("--bank-sampling-steps", type=int, help="Denoising steps per image of the knowledge bank."),
    click.option("--bank-guidance-scale", type=float, help="Scale of classifier-free guidance for the knowledge bank."),
    click.option("--storage-path", help=f"Folder or URI for results and checkpoints.  [default: {DEFAULT_DATA_FOLDER}]"),
    click.option("--tracking-uri", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else SQLite in the storage path]"),
    click.option(
        "--runner",
        type=click.Choice(RUNNERS),
        default="auto",
        show_default=True,
        help="Place of training: Ray Train worker groups, or one CPU worker inside the Tune trial.",
    ),
    click.option("--workers-per-trial", type=int, default=1, show_default=True, help="Data-parallel workers per trial."),
    click.option(
        "--source-workers",
        type=int,
        help="Workers that pre-train a learngene or an ancestor.  [default: as many as shorten the sweep]",
    ),
    click.option(
        "--max-concurrent",
        type=int,
        help="Trials that run or wait at a time.  [default: as many as fit; a few more on a joined cluster]",
    ),
    click.option(
        "--checkpoint-every-steps", type=int, help="Steps between two checkpoints: the most that an interruption costs."
    ),
    click.option(
        "--disk-budget",
        callback=byte_count,
        help="Size that the storage path must not exceed, such as 50GB; larger sweeps are refused.",
    ),
    click.option("--dry-run", is_flag=True, help="Print every point and its cost, and compute nothing."),
]


def grid_options(*, without: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """Add the size-grid options, except those in `without`."""

    def add(command: Callable) -> Callable:
        for option in reversed(_OPTIONS):
            command = option(command)
        command.__click_params__ = [p for p in command.__click_params__ if p.name not in without]
        return command

    return add


def grid_from(options: dict[str, Any]) -> GridSpec:
    """The grid that the options describe. Raises ValueError."""
    options["gpus_per_worker"] = resolved_gpus(options["gpus_per_worker"])
    precision, sampling_precision = (
        resolved_precision(options[name], options["gpus_per_worker"]) for name in ("precision", "sampling_precision")
    )
    options["precision"] = precision
    sampler = SamplerSpec(
        sampler=options["sampler"],
        sampling_steps=options["sampling_steps"],
        guidance_scale=options["guidance_scale"],
        precision=sampling_precision,
    )
    inputs = read_inputs(options)
    taken = {"sampler": sampler, "source": inputs.source, "scoring": inputs.scoring}
    taken["dataset"] = dataset_named(options["dataset"], options, inputs)
    for name in ("image_size", "image_column", "label_column"):
        if _is_given(name) and not any(is_by_path(options[data] or "") for data in ("dataset", "target")):
            raise ValueError(f"--{name.replace('_', '-')} is of images by path; the built-in sets have their own, leave it out")
    taken["methods"] = options["methods"] or (("fine", "scratch") if inputs.source is None else ("given", "fine", "scratch"))
    if inputs.source is not None:
        taken["head_dim"] = inputs.source.model.size.head_dim  # heads keep their size at all widths
        taken["parameterization"] = inputs.source.model.parameterization
    taken["forgetting"] = _forgetting(
        options["forgetting"], EvaluationSpec(num_samples=options["num_samples"], sampler=sampler)
    )
    taken["options"] = chosen_options(options, options_of_initializations())
    taken["score_at"] = options["score_at"] or ()
    own = {field.name for field in fields(GridSpec)} - {*taken, "transfer"}
    grid = GridSpec(**taken, **{name: options[name] for name in own})
    grid = replace(grid, transfer=_transfer_from(options, grid.methods, inputs))
    check_scores(grid, inputs)
    return grid


def _forgetting(choice: str, own: EvaluationSpec) -> EvaluationSpec | None:
    """Evaluation of the source domain after a transfer. It never costs more than the target's."""
    quick = EVALUATIONS["quick"]
    sampler = SamplerSpec(
        sampler=quick.sampler,
        sampling_steps=quick.sampling_steps,
        guidance_scale=quick.guidance_scale,
        precision=own.sampler.precision,
    )
    cheap = EvaluationSpec(num_samples=quick.num_samples, sampler=sampler)
    if choice == "none":
        return None
    return own if choice == "same" or _passes(own) <= _passes(cheap) else cheap


def _passes(evaluation: EvaluationSpec) -> int:
    return evaluation.num_samples * evaluation.sampler.passes_per_sample


def _transfer_from(options: dict[str, Any], named: tuple[str, ...], inputs: Inputs) -> TransferGridSpec | None:
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
        precision=resolved_precision(options["sampling_precision"], options["gpus_per_worker"]),
    )
    chosen = options["transfer_from"] or tuple(name for name in named if name == "fine") or named
    for name in chosen:
        if name not in named:
            raise ValueError(f"--transfer-from {name!r} is not among --initializations {','.join(named)}")
    chosen_values = chosen_options(options, options_of_methods())
    # `@FILE` among schedules is how a file of a search was named before --tuned.
    schedules = chosen_values.values[SCHEDULES]
    files = [*(options["tuned"] or ()), *(text[1:] for text in schedules if text.startswith("@"))]
    plain = tuple(text for text in schedules if not text.startswith("@"))
    return TransferGridSpec(
        methods=options["transfer"],
        options=ChosenOptions(values={**chosen_values.values, SCHEDULES: plain}),
        tuned=tuple(found for file in files for found in read_tuned(Path(file))),
        initializations=chosen,
        steps=options["transfer_steps"],
        lr=options["transfer_lr"],
        bank_images=options["bank_images"],
        bank_sampler=bank_sampler,
        target=dataset_named(target, options, inputs),
        target_reference=inputs.target_reference,
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
        gpus_per_worker=resolved_gpus(options["gpus_per_worker"]),
        cpus_per_worker=options["cpus_per_worker"],
        max_concurrent=options["max_concurrent"],
        source_workers=options["source_workers"],
        checkpoint_every_steps=options["checkpoint_every_steps"],
        computing=computing_from(options),
    )
    workers = runner.workers_per_trial
    if batch_size % workers:
        raise ValueError(f"batch_size {batch_size} does not divide among {workers} workers; use a multiple of {workers}")
    micro_batch = options["micro_batch"]
    if micro_batch is not None and (batch_size // workers) % micro_batch:
        raise ValueError(f"--micro-batch {micro_batch} does not divide the {batch_size // workers} samples of a worker")
    return runner


def preset_grid(name: str) -> GridSpec:
    """The grid of a preset, for benchmarks."""
    command = click.command()(grid_options()(lambda **options: None))
    return grid_from(command.make_context("preset", ["--preset", name]).params)
