"""Schedule search: Optuna searches the retention schedule and other settings of a transfer for the best FID."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from fine_core.sampling.schedulers import SAMPLERS as IMAGE_SAMPLERS
from fine_core.text import check_database_uri, sqlite_uri
from sweeps.command_line.method_options import chosen_options, flag_name, parameter_name
from sweeps.command_line.options import grid_from, grid_options, runner_from
from sweeps.command_line.parsing import OneLineErrors, RenamedOption, byte_count, names
from sweeps.command_line.session import Request, run_sweep
from sweeps.planning.machine import Machine
from sweeps.planning.plan import Found
from sweeps.search.objectives import OBJECTIVES
from sweeps.search.planning import SearchPlan, SearchSpec, plan_search
from sweeps.search.space import PARAMETERS
from sweeps.search.study import SAMPLERS
from sweeps.search.view import show_search
from sweeps.size_grid import main as size_grid
from trainables.methods import TRANSFER_ALIASES, TRANSFER_METHODS, transfer_method
from trainables.specs.base import check
from trainables.specs.options import named

if TYPE_CHECKING:
    from sweeps.execution.sweep import Surroundings, Sweep

ONE_EACH = ("transfer", "seeds")  # grid options that take several values; a search has an option for one of each
NOT_OF_SEARCH = ("tuned",)


@dataclass(frozen=True, kw_only=True)
class SearchRequest(Request):
    """A planned search. `study_storage` is an Optuna storage URL, or None for SQLite beside the results."""

    plan: SearchPlan
    study_storage: str | None
    grid_options: tuple[str, ...]  # given on the command line, as size_grid.py takes them

    def show(self, console: Console, found: Found, machine: Machine) -> None:
        show_search(console, self.plan, found, machine)

    def sweep(self, surroundings: Surroundings) -> Sweep:
        from sweeps.execution.sweep import Sweep
        from sweeps.search.agenda import SearchAgenda
        from sweeps.search.report import NextSteps, report_search

        storage = self.study_storage or sqlite_uri(surroundings.databases.absolute() / "optuna.db")
        agenda = SearchAgenda(self.plan, surroundings.store, storage)
        next_steps = NextSteps(grid_options=self.grid_options, study_storage=storage)
        return Sweep(agenda, surroundings, partial(report_search, next_steps=next_steps))


@click.command(
    cls=OneLineErrors, epilog="Example: python sweeps/schedule_search.py --size all --trials 40 --storage-path ~/runs"
)
@click.option(
    "--transfer",
    "method",
    cls=RenamedOption,
    old_names=("--method",),
    default="diff-tuning",
    show_default=True,
    help=f"Transfer method whose settings are searched: {', '.join((*TRANSFER_METHODS, *TRANSFER_ALIASES))}.",
)
@click.option("--size", "sizes", callback=names, help="Sizes to search, such as L4-D64, or all.  [default: the largest]")
@click.option(
    "--objectives",
    callback=names,
    default="fid",
    show_default=True,
    help=f"Objectives, fid among them: {', '.join(OBJECTIVES)}.",
)
@click.option("--trials", "num_trials", type=int, default=24, show_default=True, help="Trials per study.")
@click.option(
    "--study-sampler",
    cls=RenamedOption,
    old_names=("--sampler",),
    type=click.Choice(SAMPLERS),
    default="auto",
    show_default=True,
    help="Study sampler: Optuna's algorithm that proposes points.",
)
@click.option("--image-sampler", "sampler", type=click.Choice(list(IMAGE_SAMPLERS)), help="Image sampler of the scores.")
@click.option("--study-seed", type=int, default=0, show_default=True, help="Seed of the study sampler.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all training.")
@click.option(
    "--parameters", "searched", callback=names, help=f"Parameters to search: {', '.join(PARAMETERS)}.  [default: all]"
)
@click.option(
    "--enqueue",
    "known_points",
    multiple=True,
    help="Point to try right after the papers' defaults, such as schedule=power:0.5,lr=1e-3.",
)
@click.option("--max-params", type=int, help="Largest number of parameters of a served model.")
@click.option("--max-serve-bytes", callback=byte_count, help="Largest number of stored bytes of a point, such as 30MB.")
@click.option(
    "--early-stopping/--no-early-stopping",
    default=True,
    show_default=True,
    help="Successive halving; for a single objective only.",
)
@click.option("--reduction-factor", type=int, default=3, show_default=True, help="Reduction factor of successive halving.")
@click.option(
    "--proxy-samples",
    type=int,
    default=250,
    show_default=True,
    help="Images drawn for a score at a rung of successive halving.",
)
@click.option("--study", help="Name of the studies in their storage.  [default: derived from the search space and the task]")
@click.option("--study-storage", help="URL of the Optuna storage.  [default: SQLite beside the results]")
@grid_options(without=(*ONE_EACH, *NOT_OF_SEARCH, "sampler"))
def main(**options) -> None:
    """Search the retention schedule and other settings of one transfer method, at one size or at all sizes of a grid.

    Takes the options of size_grid.py too; their values are the defaults, which are tried first. The same command again
    continues the same studies; a larger --trials adds to them. Writes a file for `size_grid.py --schedules @best.json`.
    """
    run_sweep("schedule-search", options, _request)


def _request(options: dict[str, Any]) -> SearchRequest:
    check_database_uri(options["study_storage"] or "")
    options |= {"transfer": (options["method"],), "seeds": (options["seed"],), "tuned": None}
    for kind in transfer_method(options["method"]).options:
        for item in kind.fields():
            name = named(kind.group, item.name)
            options[parameter_name(name)] = _only_one(name, options[parameter_name(name)])
        chosen_options(options, (kind,)).one(kind)  # raises ValueError for a value that it cannot have, such as @FILE
    grid = grid_from(options)
    if grid.transfer is None:
        raise ValueError(f"there is nothing to search without a target for {options['dataset']}; name one with --target")
    limits = {"params_total": options["max_params"], "serve_bytes": options["max_serve_bytes"]}
    own = ("method", "objectives", "study_seed", "searched", "known_points", "early_stopping")
    own += ("reduction_factor", "proxy_samples", "study")
    if options["searched"] is not None:  # a schedule was called by its first parameter before
        options["searched"] = tuple("schedule" if name == "family" else name for name in options["searched"])
    search = SearchSpec(
        sizes=options["sizes"] or (),
        sampler=options["study_sampler"],
        num_trials=options["num_trials"],
        limits={name: limit for name, limit in limits.items() if limit is not None},
        **{name: options[name] for name in own},
    )
    return SearchRequest(
        grid=grid,
        plan=plan_search(grid, search),
        runner=runner_from(options, grid.batch_size),
        params={name: options[name] for name in (*own, "sizes", "max_params", "max_serve_bytes", "study_sampler")},
        study_storage=options["study_storage"],
        grid_options=_given_grid_options(),
    )


def _only_one(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The one value that a search starts from: of a preset's several the first. Raises ValueError for several given ones."""
    given = click.get_current_context().get_parameter_source(parameter_name(name)) == ParameterSource.COMMANDLINE
    check(len(values) == 1 or not given, f"{flag_name(name)} has {len(values)} values; a search starts from one")
    return values[:1]


def _given_grid_options() -> tuple[str, ...]:
    """Given options that size_grid.py has too. A grid that uses the result needs the same ones."""
    context, given = click.get_current_context(), []
    for parameter in size_grid.params:
        alike = parameter.name not in (*ONE_EACH, *NOT_OF_SEARCH, "dry_run", "clean", "yes")  # the last three compute nothing
        if alike and context.get_parameter_source(parameter.name) == ParameterSource.COMMANDLINE:
            value = context.params[parameter.name]
            if parameter.is_flag:
                given.append((parameter.opts if value else parameter.secondary_opts)[0])
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            given += [parameter.opts[0], text]
    return tuple(given)


if __name__ == "__main__":
    main()
