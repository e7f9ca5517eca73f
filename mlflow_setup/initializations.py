"""Figures of initializations side by side, from plain data: quality against stored bytes, and the cost of N sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_setup.report import MARKERS, Rows, pyplot

FULL = "full"  # full pre-training of every size: trained longer than the others, and nothing is kept but the models


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    import matplotlib

    names, colors = sorted({row["initialization"] for row in rows}), matplotlib.color_sequences["tab20"]
    return {
        name: {"color": colors[2 * i % 20 + i // 10 % 2], "marker": MARKERS[i % len(MARKERS)], "label": name}
        for i, name in enumerate(names)
    }


def draw_initializations(rows: Rows, path: Path) -> Path:
    """PNG, one column per size: FID against the stored bytes with the front, and FID over the steps of training."""
    plt, styles = pyplot(), _styles(rows)
    sizes = list(dict.fromkeys((row["depth"], row["width"]) for row in rows))
    figure, axes = plt.subplots(2, len(sizes), figsize=(max(7, 4.6 * len(sizes) + 2), 8), squeeze=False, layout="constrained")
    for column, (depth, width) in enumerate(sizes):
        members = [row for row in rows if (row["depth"], row["width"]) == (depth, width)]
        _draw_front(axes[0][column], members, styles)
        _draw_curves(axes[1][column], members, styles)
        axes[0][column].set_title(f"L{depth}-D{width}")
    for row, text in zip(axes, ("FID after equal steps", "FID"), strict=True):
        row[0].set_ylabel(f"{text} (lower is better)")
    _legend(figure, axes.flat)
    seeds, sources = max(row["num_seeds"] for row in rows), max(row["num_source_seeds"] for row in rows)
    over = f"{seeds} models a point, {sources} source seeds" if seeds > 1 else "1 seed"
    figure.suptitle(
        f"Initializations: quality against what is stored, and over training\n{rows[0]['protocol']} | {over}", fontsize=9
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _legend(figure: Any, axes: Any) -> None:
    """One legend for all axes, each name once."""
    found = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside right center", fontsize=8)


def _draw_front(ax: Any, rows: Rows, styles: dict[str, dict[str, Any]]) -> None:
    best, front = float("inf"), []
    for row in sorted(rows, key=lambda row: (row["initialize_bytes"], row["fid"])):
        style = styles[row["initialization"]]
        if row["initialization"] == FULL:
            ax.axhline(row["fid"], color=style["color"], ls="--", lw=1)
            continue
        settings = {"lw": 0, "elinewidth": 1, "capsize": 3, **style}
        ax.errorbar(row["initialize_bytes"] / 1e6, row["fid"], yerr=row["fid_stderr"] or 0.0, **settings)
        if row["fid"] < best:
            best = row["fid"]
            front.append(row)
    ax.step([r["initialize_bytes"] / 1e6 for r in front], [r["fid"] for r in front], where="post", color="0.6", lw=5, alpha=0.5)
    ax.set_xlabel("MB stored to initialize any size")
    _log_fids(ax)


def _draw_curves(ax: Any, rows: Rows, styles: dict[str, dict[str, Any]]) -> None:
    for row in rows:
        style = {**styles[row["initialization"]], "ms": 4, "lw": 1}
        if row["initialization"] == FULL:
            ax.axhline(row["fid"], color=style["color"], ls="--", lw=1, label=f"{FULL}: {max(row['fid_at']):,} steps")
        else:
            ax.plot(list(row["fid_at"]), list(row["fid_at"].values()), **style)
    ax.set_xlabel("steps with all weights trained (0: after the coefficient phase)")
    _log_fids(ax)


def _log_fids(ax: Any) -> None:
    from matplotlib.ticker import ScalarFormatter

    ax.set_yscale("log")
    for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.grid(alpha=0.3, which="both")


def draw_costs(rows: Rows, path: Path) -> Path:
    """PNG of cumulative training steps and of stored bytes against the number of sizes that are made, smallest first."""
    plt, styles = pyplot(), _styles(rows)
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for name, style in styles.items():
        members = sorted((r for r in rows if r["initialization"] == name), key=lambda r: (r["depth"], r["width"]))
        numbers = range(1, len(members) + 1)
        steps = [members[0]["one_off_steps"] + sum(r["model_steps"] for r in members[:n]) for n in numbers]
        axes[0].plot([0, *numbers], [members[0]["one_off_steps"], *steps], **style)
        if members[0]["initialize_bytes"]:
            axes[1].plot([0, *numbers], [members[0]["initialize_bytes"] / 1e6] * (len(members) + 1), **style)
    largest = max(styles, key=lambda name: sum(r["initialization"] == name for r in rows))
    dense = sorted((r for r in rows if r["initialization"] == largest), key=lambda r: (r["depth"], r["width"]))
    total = [sum(r["serve_bytes"] for r in dense[:n]) / 1e6 for n in range(len(dense) + 1)]
    axes[1].plot(range(len(total)), total, color="black", ls="--", lw=2, label="dense weights of every size")
    axes[0].set_ylabel("training steps, one-off included")
    axes[1].set_ylabel("MB kept to have or to make these sizes")
    for ax in axes:
        ax.set_xlabel("sizes made, smallest first")
        ax.set_xticks(range(len(dense) + 1))
        ax.grid(alpha=0.3)
    _legend(figure, axes)
    figure.suptitle("What N sizes cost, as measured")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
