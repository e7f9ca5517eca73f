"""Figures and tables of a sweep, from plain rows: pareto.csv, pareto.png, pareto.html, ledger.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COSTS = {
    "params_total": "parameters",
    "macs": "MACs per forward pass",
    "serve_bytes": "bytes stored per point",
    "params_trainable": "parameters trained",
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # distinguishable with colour blindness
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

LABEL_SHARE = 0.12  # of an axis, that a label takes

Rows = Sequence[dict[str, Any]]


def pyplot():
    """matplotlib.pyplot with a backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def provenance_line(rows: Rows) -> str:
    """Protocol and number of seeds, as every figure states them."""
    seeds = max(row["num_seeds"] for row in rows)
    return f"{rows[0]['protocol']} | {f'{seeds} seeds, bars: standard error' if seeds > 1 else '1 seed'}"


def write_csv(rows: Rows, path: Path) -> Path:
    """A column for everything that a row has; empty where another row does not have it."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_method(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Rows by method, in order of each method's first row."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def _label(ax: Any, members: Rows, cost: str, *, span: float) -> None:
    """Sizes of the front's members, below or above them. One that has room on neither side, or was just named, is left out."""
    below, above = (0, -13), (0, 8)
    last = {below: -math.inf, above: -math.inf}
    named = ""
    for row in members:
        place, name = math.log10(row[cost]), f"L{row['depth']}-D{row['width']}"
        for offset, before in last.items():
            if name != named and place - before >= LABEL_SHARE * span:
                named = name
                ax.annotate(name, (row[cost], row["fid"]), textcoords="offset points", xytext=offset, fontsize=8, ha="center")
                last[offset] = place
                break


def draw_front(rows: Rows, path: Path, *, title: str) -> Path:
    """PNG of FID against two costs: points with standard errors, one line per method, and the joint front.

    The costs are parameters and MACs for base models, parameters and delta bytes for transfers.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    plt = pyplot()
    transferred = any(row["transfer"] != "none" for row in rows)
    costs = ("params_total", "serve_bytes" if transferred else "macs")
    figure, axes = plt.subplots(1, len(costs), figsize=(12.5, 5.6), sharey=True, layout="constrained")
    for ax, cost in zip(axes, costs, strict=True):
        members = sorted((r for r in rows if r[f"front_{cost}"]), key=lambda r: r[cost])
        ax.plot([r[cost] for r in members], [r["fid"] for r in members], color="0.6", lw=7, alpha=0.5, label="joint front")
        for i, (method, points) in enumerate(by_method(rows).items()):
            points = sorted(points, key=lambda r: r[cost])
            errors = [r["fid_stderr"] or 0.0 for r in points]
            style = {"marker": MARKERS[i % len(MARKERS)], "color": COLORS[i % len(COLORS)], "capsize": 3, "ms": 6}
            style |= {"lw": 0, "elinewidth": 1}
            ax.errorbar([r[cost] for r in points], [r["fid"] for r in points], yerr=errors, label=method, **style)
            own = [r for r in points if r[f"method_front_{cost}"]]
            ax.plot([r[cost] for r in own], [r["fid"] for r in own], color=style["color"], lw=1.2)
        _label(ax, members, cost, span=math.log10(max(r[cost] for r in rows) / min(r[cost] for r in rows)))
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("bytes of the delta" if transferred and cost == "serve_bytes" else COSTS[cost])
        ax.margins(x=0.12)
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("FID (lower is better)")
    axes[0].set_ylim(0, 1.1 * max(row["fid"] + (row["fid_stderr"] or 0.0) for row in rows))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(f"{title} (thin lines: each method's own front)\n{provenance_line(rows)}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def interactive_front(rows: Rows, path: Path, *, title: str) -> Path:
    """Self-contained HTML of the same front; a menu chooses the cost axis, hovering shows the whole row."""
    import plotly.graph_objects as go

    methods = by_method(rows)
    figure = go.Figure()
    for cost in COSTS:
        visible = cost == "params_total"
        members = sorted((r for r in rows if r[f"front_{cost}"]), key=lambda r: r[cost])
        line = {"color": "lightgrey", "width": 8}
        x, y = [r[cost] for r in members], [r["fid"] for r in members]
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="Pareto front", visible=visible, hoverinfo="skip")
        for i, (method, points) in enumerate(methods.items()):
            figure.add_scatter(
                x=[r[cost] for r in points],
                y=[r["fid"] for r in points],
                error_y={"type": "data", "array": [r["fid_stderr"] or 0.0 for r in points]},
                mode="markers",
                marker={"size": 11, "color": COLORS[i % len(COLORS)], "symbol": SYMBOLS[i % len(SYMBOLS)]},
                name=method,
                visible=visible,
                text=[_hover(r) for r in points],
                hoverinfo="text",
            )
    traces_per_cost = 1 + len(methods)
    buttons = []
    for i, (_, label) in enumerate(COSTS.items()):
        shown = [i == j // traces_per_cost for j in range(traces_per_cost * len(COSTS))]
        buttons.append({"label": label, "method": "update", "args": [{"visible": shown}, {"xaxis.title.text": label}]})
    figure.update_layout(
        title={"text": f"{title}<br><sup>{rows[0]['protocol']}</sup>"},
        xaxis={"type": "log", "minorloglabels": "complete", "title": {"text": COSTS["params_total"]}},
        yaxis={"title": {"text": "FID (lower is better)"}, "rangemode": "tozero"},
        updatemenus=[{"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.12}],
        template="plotly_white",
    )
    figure.write_html(path, include_plotlyjs=True)
    return path


def _hover(row: dict[str, Any]) -> str:
    error = "" if row["fid_stderr"] is None else f" ± {row['fid_stderr']:.3f}"
    return (
        f"<b>{row['label']}</b><br>FID {row['fid']:.3f}{error}<br>{row['params_total']:,} parameters"
        f" ({row['params_trainable']:,} trained)<br>{row['macs']:,} MACs<br>{row['serve_bytes']:,} bytes stored"
        f"<br>training {row['train_s']:.1f} s"
    )
