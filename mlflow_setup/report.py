"""Figures and tables of a sweep, from plain rows: pareto.csv, pareto.png, pareto.html, ledger.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COSTS = {"params_total": "parameters", "macs": "MACs per forward pass", "serve_bytes": "bytes to serve"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # readable with colour blindness
MARKERS = ("o", "s", "^", "D", "v", "P")

Rows = Sequence[dict[str, Any]]


def write_csv(rows: Rows, path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _by_method(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def draw_front(rows: Rows, path: Path, *, title: str) -> Path:
    """PNG of FID against parameters and MACs: every point with its standard error, the joint front as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    costs = ("params_total", "macs")
    figure, axes = plt.subplots(1, len(costs), figsize=(12, 5.4), sharey=True, layout="constrained")
    for ax, cost in zip(axes, costs, strict=True):
        members = sorted((r for r in rows if r[f"front_{cost}"]), key=lambda r: r[cost])
        ax.plot([r[cost] for r in members], [r["fid"] for r in members], color="0.6", lw=6, alpha=0.5, label="Pareto front")
        for i, (method, points) in enumerate(_by_method(rows).items()):
            points = sorted(points, key=lambda r: r[cost])
            errors = [r["fid_stderr"] or 0.0 for r in points]
            style = {"fmt": MARKERS[i % len(MARKERS)], "color": COLORS[i % len(COLORS)], "capsize": 3, "ms": 7}
            ax.errorbar([r[cost] for r in points], [r["fid"] for r in points], yerr=errors, label=method, **style)
            for r in points:
                name = f"L{r['depth']}-D{r['width']}"
                ax.annotate(name, (r[cost], r["fid"]), textcoords="offset points", xytext=(6, 6), fontsize=8)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(COSTS[cost])
        ax.margins(x=0.12)
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("FID (lower is better)")
    axes[0].set_ylim(0, 1.1 * max(row["fid"] + (row["fid_stderr"] or 0.0) for row in rows))
    axes[0].legend()
    seeds = max(row["num_seeds"] for row in rows)
    note = f"{seeds} seeds, bars: standard error" if seeds > 1 else "1 seed"
    figure.suptitle(f"{title}\n{rows[0]['protocol']} | {note}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def interactive_front(rows: Rows, path: Path, *, title: str) -> Path:
    """Self-contained HTML of the same front; a menu chooses the cost axis, hovering shows the whole row."""
    import plotly.graph_objects as go

    methods = _by_method(rows)
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
                marker={"size": 11, "color": COLORS[i % len(COLORS)]},
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
        f"<br>{row['macs']:,} MACs<br>{row['serve_bytes']:,} bytes<br>training {row['train_s']:.1f} s"
    )
