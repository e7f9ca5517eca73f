"""Chain-of-forgetting curve: how much of the sampling, from the data end, the base model can take back from a tuned one."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command_line.options import grid_from, grid_options, runner_from
from sweeps.command_line.parsing import OneLineErrors
from sweeps.command_line.session import Request, run_sweep
from sweeps.planning.grid import GridSpec
from sweeps.planning.plan import plan_points, tuned_transfers
from sweeps.planning.points import ForgettingCurve
from trainables.specs.base import check
from trainables.specs.transfers import TransferSpec

DEFAULT_SHARES = "0,0.07,0.15,0.2,0.3,0.4,0.5,0.6,0.8,1"


def _shares(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of shares such as 0,0.1,0.5") from None


@click.command(cls=OneLineErrors, epilog="Example: python sweeps/forgetting_curve.py --transfer full,difffit --seeds 0,1,2")
@click.option("--size", help="The one size of the grid to look at, such as L4-D64.  [default: the largest]")
@click.option("--shares", callback=_shares, default=DEFAULT_SHARES, show_default=True, help="Shares of steps to replace.")
@grid_options()
def main(**options) -> None:
    """Replace the tuned denoiser by its base model (null label) for a growing share of steps from the data end, and plot
    FID against the share (Diff-Tuning, arXiv 2406.00773, section 2).

    Takes the options of size_grid.py, computes what is missing of that grid at one size, and reuses what is there.
    """
    run_sweep("forgetting-curve", options, _request)


def _request(options: dict[str, Any]) -> Request:
    grid = grid_from(options)
    if grid.transfer is None:
        raise ValueError("there is no curve without a transfer; name at least one with --transfer, and a --target")
    depth, width = _chosen_size(grid, options["size"])
    named = [name for name in grid.transfer.initializations if (depth, width) in grid.sizes_of(name).values()]
    bases = [base for name in named for base in grid.base_models(name, depth, width)]
    transfers = [transfer for base in bases for transfer in grid.transfer.transfers(base)]
    tuned = [transfer for transfer in tuned_transfers(grid) if transfer.size == grid.size(depth, width)]
    for transfer in (*transfers, *tuned):
        if transfer.model.input_size != transfer.base.model.input_size:
            raise ValueError(f"the base model has never seen images as large as those of {transfer.dataset!r}")
    curves = [_curve(grid, transfer, options["shares"]) for transfer in (*transfers, *tuned)]
    return Request(
        grid=grid,
        plan=plan_points(grid, [*bases, *transfers], tuned=tuned, curves=curves),
        runner=runner_from(options, grid.batch_size),
        params={"size": f"L{depth}-D{width}", "shares": options["shares"]},
    )


def _curve(grid: GridSpec, transfer: TransferSpec, shares: tuple[float, ...]) -> ForgettingCurve:
    """One score for every number of replaced steps that the shares come to. Raises ValueError for a share above 1."""
    check(all(0 <= share <= 1 for share in shares), f"shares are {shares}; each must be between 0 and 1")
    steps = sorted({round(share * grid.sampler.sampling_steps) for share in shares})
    scores = tuple(grid.score(transfer, seed=transfer.seed, replaced_steps=number) for number in steps)
    return ForgettingCurve(transfer=transfer, scores=scores)


def _chosen_size(grid: GridSpec, name: str | None) -> tuple[int, int]:
    """(depth, width) of the size called `name`. Raises ValueError if the grid has none."""
    if name is None:
        return max(grid.sizes.values())
    if name not in grid.sizes:
        raise ValueError(f"the grid has no size {name!r}; choose one of {', '.join(grid.sizes)}")
    return grid.sizes[name]


if __name__ == "__main__":
    main()
