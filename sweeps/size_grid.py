"""Size grid: every method at every depth and width, taken to a target domain, ending in size-versus-FID fronts."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command_line.options import grid_from, grid_options, runner_from
from sweeps.command_line.parsing import OneLineErrors
from sweeps.command_line.session import Request, run_sweep
from sweeps.planning.plan import plan_grid


@click.command(
    cls=OneLineErrors, epilog="Example: python sweeps/size_grid.py --depths 2,4 --widths 32 --seeds 0,1,2 --storage-path ~/runs"
)
@grid_options()
@click.option("--clean", is_flag=True, help="List what no front of this grid needs, and delete it if you agree.")
@click.option("--yes", is_flag=True, help="--clean: delete without asking.")
def main(**options) -> None:
    """Train every method at every depth x width, take the models to a target domain, and report size-versus-FID fronts.

    The same command again computes only what is missing. Without options it runs a demo on embedded data.
    """
    run_sweep("size-grid", options, _request)


def _request(options: dict[str, Any]) -> Request:
    grid = grid_from(options)
    return Request(grid=grid, plan=plan_grid(grid), runner=runner_from(options, grid.batch_size))


if __name__ == "__main__":
    main()
