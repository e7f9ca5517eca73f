"""Tables of initializations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sweeps.display.numbers import amount, duration


def show_initializations(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """One table per size: FID from the start to the end of equal steps, and the costs; the best first."""
    for depth, width in dict.fromkeys((row["depth"], row["width"]) for row in rows):
        members = [row for row in rows if (row["depth"], row["width"]) == (depth, width)]
        steps = sorted({step for row in members for step in row["fid_at"] if step < max(_counted(members))})
        title = f"Initializations at L{depth}-D{width}: FID by steps with all weights trained"
        columns = ["initialization", "start", *(str(step) for step in steps), f"end ({max(_counted(members))})"]
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column in [*columns, "steps to scratch", "stored bytes", "one-off steps"]:
            table.add_column(column, justify="left" if column == "initialization" else "right", no_wrap=True)
        for row in members:
            table.add_row(*_cells(row, steps))
        console.print(table)


def _counted(members: Sequence[dict[str, Any]]) -> list[int]:
    """The last step that counts of every row but those of full pre-training, which trains longer."""
    own = [max(row["fid_at"]) for row in members if row["initialization"] != "full"]
    return own or [max(row["fid_at"]) for row in members]


def _cells(row: dict[str, Any], steps: Sequence[int]) -> list[str]:
    end = f"{row['fid']:.3f}" + ("" if row["fid_stderr"] is None else f" ± {row['fid_stderr']:.3f}")
    if row["initialization"] == "full":
        end += f" (after {max(row['fid_at']):,})"
    reached = row["steps_to_reference"]
    return [
        row["initialization"],
        f"{row['fid_start']:.2f}",
        *(f"{row['fid_at'][step]:.2f}" if step in row["fid_at"] else "" for step in steps),
        end,
        "never" if reached is None else f"{reached:,}",
        f"{row['initialize_bytes']:,}" if row["initialize_bytes"] else "-",
        f"{row['one_off_steps']:,.0f}" if row["one_off_steps"] else "-",
    ]


def show_costs(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """What all sizes cost, and how much less that is than pre-training and keeping each of them."""
    table = Table(title="Costs of all sizes: one-off + the steps of every size", title_justify="left", box=SIMPLE)
    columns = [
        "initialization",
        "stored bytes",
        "fewer bytes",
        "one-off steps",
        "+ of sizes",
        "time",
        "fewer steps",
        "w/o one-off",
    ]
    for column in columns:
        table.add_column(column, justify="left" if column == "initialization" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["initialization"],
            amount(row["initialize_bytes"], "B") if row["initialize_bytes"] else "-",
            _times(row["times_fewer_bytes"]),
            f"{row['one_off_steps']:,.0f}" if row["one_off_steps"] else "-",
            f"{row['steps_of_sizes']:,}",
            duration(row["total_s"]),
            _times(row["times_fewer_steps"]),
            _times(row["times_fewer_steps_without_one_off"]),
        )
    console.print(table)
    console.print(
        "fewer bytes: dense weights of all sizes / stored bytes; fewer steps: full pre-training of all sizes / these steps, "
        "with the one-off steps and without"
    )


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"
