"""Tables of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fine_core.data.registry import short_name
from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from sweeps.display.numbers import amount, duration

WIDE_TERMINAL = 125  # columns that the full table of points needs, with one metric beside FID or what was forgotten
METRIC_COLUMNS = 12  # that each further metric takes


def show_front(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The points, cheapest first; those on the joint front of parameters against FID are marked.

    A narrow terminal gets the columns that matter most: a number cut off would be a wrong one.
    """
    title = f"Points on {short_name(rows[0]['dataset'])} (* = on the front of parameters against FID)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    transferred = any(row["transfer"] != "none" for row in rows)
    cells_of = {"": lambda row: "*" if row["front_params_total"] else "", "point": lambda row: row["label"]}
    cells_of |= {"parameters": lambda row: f"{row['params_total']:,}", "FID": _fid_cell}
    cells_of["delta bytes" if transferred else "bytes"] = lambda row: f"{row['serve_bytes']:,}"
    if console.width >= WIDE_TERMINAL:
        if rows[0]["front_probability"] is not None:
            cells_of["P(front)"] = lambda row: f"{row['front_probability']:.2f}"
        cells_of["trained"] = lambda row: f"{row['params_trainable']:,}"
        if transferred:
            cells_of["source FID"] = _source_fid_cell
        else:
            cells_of["MACs"] = lambda row: amount(row["macs"])
        room = (console.width - WIDE_TERMINAL) // METRIC_COLUMNS + (0 if transferred else 1)
        for name in _further_metrics(rows[0])[:room]:
            cells_of[METRICS[name].label] = lambda row, name=name: f"{row[name]:.4f}"
        cells_of |= {"train s": lambda row: f"{row['train_s']:.1f}", "eval s": lambda row: f"{row['eval_s']:.1f}"}
    for column in cells_of:
        table.add_column(column, justify="left" if column in ("", "point") else "right", no_wrap=column != "point")
    for row in rows:
        style = "bold green" if row["front_params_total"] else None
        table.add_row(*(cell(row) for cell in cells_of.values()), style=style)
    console.print(table)


def _further_metrics(row: dict[str, Any]) -> list[str]:
    """The metrics of a point beside FID: first those that were asked for beyond the default ones."""
    computed = [name for name in METRICS if name != "fid" and row.get(name) is not None]
    return sorted(computed, key=lambda name: name in DEFAULT_METRICS)


def _fid_cell(row: dict[str, Any]) -> str:
    return f"{row['fid']:.3f}" + ("" if row["fid_stderr"] is None else f" ± {row['fid_stderr']:.3f}")


def _source_fid_cell(row: dict[str, Any]) -> str:
    """FID on the source under the null label, of the base and after the transfer."""
    return "" if row["source_fid"] is None else f"{row['source_fid_before']:.1f} -> {row['source_fid']:.1f}"


def show_curves(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """FID for every share of steps given back to the base model, one line per method."""
    table = Table(title="FID by share of steps taken back by the base model", title_justify="left", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    shares = sorted({row["share"] for row in rows})
    for share in shares:
        table.add_column(f"{share:.2f}", justify="right", no_wrap=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        fids = {row["share"]: row["fid"] for row in rows if row["method"] == method}
        table.add_row(method, *[f"{fids[share]:.3f}" for share in shares])
    console.print(table)


def show_decomposition(console: Console, rows: Sequence[dict[str, Any]], fids: dict[str, float], protocol: str) -> None:
    """What was lost in the decomposition of a given model: errors of its matrices, and FID on the way."""
    table = Table(
        title="Relative error of the decomposed matrices (0: exact, 1: as bad as zeros)", title_justify="left", box=SIMPLE
    )
    for column in ("matrix", "joint SVD", "after least squares"):
        table.add_column(column, justify="left" if column == "matrix" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row["matrix"], f"{row['joint_svd']:.3f}", f"{row['als']:.3f}")
    console.print(table)
    text = ", ".join(f"{name} {fid:.3f}" for name, fid in fids.items())
    console.print(f"FID of the given model and its learngene at the same size: {text}\nprotocol: {protocol}")


def show_ledger(console: Console, totals: dict[str, dict[str, dict[str, float]]]) -> None:
    """What is kept on disk by method, and the seconds that training it (or sampling, for a bank) took."""
    table = Table(title="Storage ledger: bytes on disk (seconds to make them)", title_justify="left", box=SIMPLE)
    table.add_column("method")
    table.add_column("shared: learngene or banks", justify="right")
    table.add_column("all its points: weights or deltas", justify="right")
    for method, roles in totals.items():
        cells = [f"{roles[role]['bytes']:,} ({duration(roles[role]['seconds'])})" for role in ("initialize", "serve")]
        table.add_row(method, *(cell if roles[role]["bytes"] else "-" for cell, role in zip(cells, roles, strict=True)))
    console.print(table)
