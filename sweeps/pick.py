"""Pick the best measured model under a budget, and take it away: safetensors, a diffusers folder, MLflow's registry."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fine_core.checkpoints.diffusers_folder import export_diffusers
from fine_core.checkpoints.formats import describe
from fine_core.checkpoints.native import save_model
from fine_core.data.registry import short_name
from fine_core.evaluation.metrics import METRICS
from fine_core.files import file_bytes
from fine_core.text import without_password
from mlflow_setup.registry import check_model_name, register_model
from mlflow_setup.tracking import open_tracking, resolve_tracking_uri
from sweeps.command_line.folders import DEFAULT_DATA_FOLDER, databases_folder
from sweeps.command_line.parsing import OneLineErrors, byte_count
from sweeps.command_line.permanent import check_permanent
from sweeps.display.console import plain_console
from sweeps.results.picking import candidates, card, on_dataset, pick, save_samples, served_model, vae_of
from trainables.storage.files import MODEL_FILE
from trainables.storage.store import Store

CARD_FILE = "card.json"
DIFFUSERS_FOLDER = "diffusers"
SAMPLES_FILE = "samples.npz"


@click.command(cls=OneLineErrors, epilog="Example: python sweeps/pick.py --max-serve-bytes 1MB --dataset digits --out small")
@click.option("--max-serve-bytes", callback=byte_count, help="Largest size of the dense model's file, such as 30MB.")
@click.option("--max-params", type=int, help="Largest number of parameters.")
@click.option("--max-gmacs", type=float, help="Largest number of multiply-accumulates of a forward pass, in 10^9.")
@click.option("--dataset", help="Dataset of the scores.  [default: the only one that has scores]")
@click.option("--protocol", default="", help="Part of the protocol's text; needed if there are scores of several protocols.")
@click.option("--out", type=Path, default=Path("picked"), show_default=True, help="Folder to write.")
@click.option("--num-samples", type=click.IntRange(min=0), default=0, help="Images to draw into an ADM .npz.")
@click.option("--name", default="fine-sweeps", show_default=True, help="Name in MLflow's model registry.")
@click.option("--storage-path", help=f"Folder or URI of the results.  [default: {DEFAULT_DATA_FOLDER}]")
@click.option("--tracking-uri", help="MLflow store.  [default: MLFLOW_TRACKING_URI, else SQLite in the storage path]")
def main(**options) -> None:
    """Pick the point with the lowest FID that keeps to the limits, over all sweeps in a storage path.

    Writes its dense weights, a folder for diffusers' DiTPipeline and a card with its scores, costs and lineage, and registers
    them in MLflow.
    """
    console = plain_console()
    try:
        _pick(options, console)
    except (ValueError, OSError) as error:
        click.echo(f"error: {without_password(str(error))}", err=True)
        sys.exit(2)


def _pick(options: dict[str, Any], console: Console) -> None:
    out: Path = options["out"]
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder with --out")
    check_model_name(options["name"])
    check_permanent(options)
    limits = {"serve_bytes": options["max_serve_bytes"], "params": options["max_params"], "gmacs": options["max_gmacs"]}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    store = Store(options["storage_path"] or DEFAULT_DATA_FOLDER)
    found = on_dataset(candidates(store), options["dataset"], options["protocol"])
    chosen = pick(found, limits)
    content = card(chosen, found)
    databases = databases_folder(store)
    tracking = open_tracking(resolve_tracking_uri(options["tracking_uri"], databases), "pick", databases)
    model = served_model(chosen, store)
    out.mkdir(parents=True)
    save_model(model, out / MODEL_FILE)
    export_diffusers(model, out / DIFFUSERS_FOLDER, vae=vae_of(chosen, store))
    if options["num_samples"]:
        save_samples(chosen, model, options["num_samples"], out / SAMPLES_FILE, store, console)
    (out / CARD_FILE).write_text(json.dumps(content, indent=1) + "\n")
    scores = {metric: content[metric] for metric in METRICS if metric in content}
    version = register_model(tracking, options["name"], out, content, scores=scores)
    error = content["fid_standard_error"]
    lines = [
        f"picked from {len(found)} points on {short_name(content['dataset'])}: {chosen.jobs[0].label}",
        describe(model.config),
        f"FID {content['fid']:.3f}" + ("" if error is None else f" ± {error:.3f}") + f" | {content['protocol']}",
        "made from: " + " <- ".join(f"{part['label']} ({part['id']})" for part in content["lineage"]),
        f"{out / MODEL_FILE}: {file_bytes(out / MODEL_FILE):,} bytes",
        f"{out / DIFFUSERS_FOLDER}: {file_bytes(out / DIFFUSERS_FOLDER):,} bytes, for DiTPipeline",
        *([f"{out / SAMPLES_FILE}: {options['num_samples']:,} images"] if options["num_samples"] else []),
        f"registered as {options['name']} version {version} in {without_password(tracking.uri)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
