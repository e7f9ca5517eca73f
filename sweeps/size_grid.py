"""Size grid: every initialization at every depth and width, transferred to a target domain; size-versus-FID fronts."""

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
@click.option(
    "--clean", is_flag=True, help="List files that no front of this grid needs, and delete them after a confirmation."
)
@click.option("--yes", is_flag=True, help="--clean: delete without a confirmation.")
def main(**options) -> None:
    """Train every initialization at every depth x width, transfer the models to a target domain, report size-versus-FID fronts.

    The same command again computes only what is missing. Without options it runs a demo on built-in data.
    """
    run_sweep("size-grid", options, _request)


def _request(options: dict[str, Any]) -> Request:
    grid = grid_from(options)
    return Request(grid=grid, plan=plan_grid(grid), runner=runner_from(options, grid.batch_size))


if __name__ == "__main__":
    main()
