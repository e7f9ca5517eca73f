"""From checked options to a finished sweep, and its exit code."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from filelock import FileLock
from rich.console import Console

from fine_core.data.by_path import is_by_path, notes_of
from fine_core.data.registry import short_name
from fine_core.text import without_password
from mlflow_setup.tracking import open_tracking, resolve_tracking_uri
from sweeps.command_line.folders import DEFAULT_DATA_FOLDER, databases_folder, reports_folder, why_elsewhere
from sweeps.command_line.inputs import read_inputs
from sweeps.command_line.permanent import check_permanent
from sweeps.display.console import plain_console
from sweeps.display.plan import show_plan
from sweeps.execution.cluster import ClusterError, check_address, is_joined, num_cpus
from sweeps.execution.errors import StoppedSweep
from sweeps.execution.runner import RunnerSpec
from sweeps.planning.disk import check_disk, disk_need
from sweeps.planning.grid import GridSpec
from sweeps.planning.machine import Machine, gpu_speed
from sweeps.planning.plan import Found, Plan, find_jobs
from sweeps.results.cleaning import clean
from trainables.storage.leases import Leases, Owner, working
from trainables.storage.store import Store

if TYPE_CHECKING:
    from sweeps.execution.sweep import Surroundings, Sweep


@dataclass(frozen=True, kw_only=True)
class Request:
    """A planned sweep and where it runs."""

    grid: GridSpec
    plan: Plan
    runner: RunnerSpec
    params: dict[str, Any] = field(default_factory=dict)  # recorded beside the grid's

    def show(self, console: Console, found: Found, machine: Machine) -> None:
        show_plan(console, self.plan, found, machine)

    def sweep(self, surroundings: Surroundings) -> Sweep:
        """The sweep, to be run. Raises ValueError if it cannot be."""
        # Imports Tune, which a dry run does not need.
        from sweeps.execution.agenda import GridAgenda
        from sweeps.execution.sweep import Sweep
        from sweeps.results.report import report_grid

        return Sweep(GridAgenda(self.plan, surroundings.store), surroundings, report_grid)

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
    console = plain_console()
    with ExitStack() as stack:
        try:
            try:
                sweep = _prepare(name, options, request, console, stack)
            except (ValueError, OSError) as error:
                click.echo(f"error: {without_password(str(error))}", err=True)
                sys.exit(2)
            if sweep is not None:
                sys.exit(sweep.run())
        except KeyboardInterrupt:
            console.print("\nStopped. Nothing finished is lost; run the same command again to go on:")
            console.print(f"  {command_line()}", soft_wrap=True)
            sys.exit(130)
        except ClusterError as error:
            click.echo(f"error: {without_password(str(error))}", err=True)
            sys.exit(2)
        except (StoppedSweep, OSError) as error:  # such as a full disk
            click.echo(
                f"error: {without_password(str(error))}; nothing finished is lost; run the same command again to go on",
                err=True,
            )
            sys.exit(1)


def _prepare(
    name: str, options: dict[str, Any], request: Callable[[dict[str, Any]], Request], console: Console, stack: ExitStack
) -> Sweep | None:
    """The sweep, checked, shown and claimed until `stack` is closed; None if none was asked for. Raises ValueError."""
    _say_other_code(console)
    _check_finite(options)
    check_permanent(options)
    asked = request(options)
    plan, runner = asked.plan, asked.runner
    say_notes(console, (job.dataset for job in plan.jobs if hasattr(job, "dataset")))
    store = Store(options["storage_path"] or DEFAULT_DATA_FOLDER)
    store.check_writable()
    databases = databases_folder(store)
    tracking_uri = resolve_tracking_uri(options["tracking_uri"], databases)
    machine = _machine(options, asked, store)
    if options["dry_run"]:
        asked.show(console, find_jobs(plan, store), machine)
        return None
    leases = stack.enter_context(working(store, Path(sys.argv[0]).name))
    if options.get("clean"):
        leases.wait_until_alone(partial(say_waiting, console))
        clean(plan, store, console, confirmed=options["yes"])
        return None
    check_address()
    if not is_joined():
        runner.check_this_machine()
    _make_folder(databases)
    from sweeps.execution.sweep import Surroundings  # imports Tune

    with FileLock(databases / ".databases.lock"):  # sweeps that create a fresh database together all fail
        tracking = open_tracking(tracking_uri, name, databases)
    _claim(plan, leases, console)
    found = find_jobs(plan, store)
    at_once = max(1, (machine.slots or 1) // runner.cpus_per_worker)
    check_disk(store, disk_need(plan, found.finished, at_once), options["disk_budget"])
    with FileLock(databases / ".databases.lock"):
        read_inputs(options).publish(store)
        sweep = asked.sweep(
            Surroundings(
                name=name,
                params=asked.recorded,
                store=store,
                tracking=tracking,
                runner=runner,
                leases=leases,
                databases=databases,
                data_folder=reports_folder(store),
                console=console,
            )
        )
    asked.show(console, found, machine)
    if runner.gpus_per_worker:
        sampling = asked.grid.sampler.precision
        console.print(f"{runner.gpus_per_worker:g} GPU a worker, {asked.grid.precision} in training, {sampling} in sampling")
    if (why := why_elsewhere(store, databases)) is not None:
        console.print(why, soft_wrap=True)
    return sweep


def _machine(options: dict[str, Any], asked: Request, store: Store) -> Machine:
    """What the time of the plan is estimated for: this machine's cores, or GPUs."""
    if not asked.runner.gpus_per_worker:
        return Machine(slots=num_cpus())
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and not is_joined() else None
    speed = gpu_speed(store, asked.plan.jobs, device_name=name, precision=asked.grid.precision)
    return Machine(slots=None, gpu=speed, gpu_hour_price=options["gpu_hour_price"])


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}, for databases, cannot be made ({error.strerror}); set HOME to a writable folder"
        ) from error


def _claim(plan: Plan, leases: Leases, console: Console) -> None:
    """Return once nobody deletes here and nobody else works on the same sweep or one of its studies."""
    waits = [leases.wait_until_shared(partial(say_waiting, console))]
    waits += [leases.wait_for(claim, partial(say_waiting, console)) for claim in plan.claims]
    if any(waits):
        console.print("it has ended; going on")


def say_waiting(console: Console, owner: Owner) -> None:
    """Who is waited for: the program, its machine and process, and since when it works."""
    console.print(f"waiting for {owner} (Ctrl-C to leave)", style="yellow", soft_wrap=True)


def command_line() -> str:
    """How this process was called, to be called again; without passwords."""
    return shlex.join(["python", *map(without_password, sys.argv)])


def _say_other_code(console: Console) -> None:
    """Warn where a checkout's command runs the code of another: that which was installed last."""
    script, code = Path(sys.argv[0]).resolve(), Path(__file__).parents[1]
    if script.parent.name == code.name and script.parent != code:
        text = f"{script} runs the code of {code.parent}, which this environment has installed; install its own: pip install -e"
        console.print(f"{text} {script.parents[1]}", style="yellow", soft_wrap=True)


def say_notes(console: Console, datasets: Iterable[str]) -> None:
    """What a person should know of how the files of sets by path were taken."""
    for name in filter(is_by_path, dict.fromkeys(datasets)):
        for note in notes_of(name):
            console.print(f"{short_name(name)}: {note}", style="yellow", soft_wrap=True)


def _check_finite(options: dict[str, Any]) -> None:
    """Raises ValueError for an option that is infinite or no number."""
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"--{name.replace('_', '-')} is {one}; it must be a finite number")
