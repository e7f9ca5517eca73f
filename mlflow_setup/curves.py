"""Figures of curves, from plain data: retention schedules over timesteps, FID over the share of replaced steps."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from mlflow_setup.report import COLORS, MARKERS, Rows, by_method, provenance_line, pyplot


def draw_schedules(schedules: dict[str, dict[str, list[float]]], path: Path) -> Path:
    """PNG of psi(t) and xi(t) of every schedule, one panel each; t = 0 is the data side."""
    plt = pyplot()
    names = list(schedules)
    figure, axes = plt.subplots(1, len(names), figsize=(max(4.5, 3.6 * len(names)), 3.2), squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], names, strict=True):
        ax.plot(schedules[name]["psi"], color=COLORS[0], lw=2, label="ψ: adapt to the target")
        ax.plot(schedules[name]["xi"], color=COLORS[1], lw=2, ls="--", label="ξ: retain the source")
        ax.set_title(name)
        ax.set_xlabel("timestep (0: data, right: noise)")
        ax.set_ylim(-0.05, 1.05)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("weight")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_best_schedules(panels: dict[str, dict[str, Any]], path: Path, *, protocol: str) -> Path:
    """PNG of psi(t) and xi(t) that a search found, beside the defaults (thin), one panel per size."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(max(6, 4.2 * len(panels)), 4), squeeze=False, layout="constrained")
    for ax, (size, panel) in zip(axes[0], panels.items(), strict=True):
        for name, color, style in (("psi", COLORS[0], "-"), ("xi", COLORS[1], "--")):
            symbol = {"psi": "ψ adapts", "xi": "ξ retains"}[name]
            ax.plot(panel["best"][name], color=color, ls=style, lw=2.5, label=f"{symbol}: {panel['best']['name']}")
            ax.plot(
                panel["default"][name], color=color, ls=style, lw=1, alpha=0.6, label=f"default: {panel['default']['name']}"
            )
        ax.set_title(f"{size}, FID {panel['fid']:.3f}")
        ax.set_xlabel("timestep (0: data, right: noise)")
        ax.set_ylim(-0.05, 1.05)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    axes[0][0].set_ylabel("weight over timesteps")
    figure.suptitle(textwrap.fill(protocol, 80 * len(panels)), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_curves(rows: Rows, path: Path) -> Path:
    """PNG of FID against the share of denoising steps that the base model takes back, one line per method."""
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(9.5, 5), layout="constrained")
    for i, (method, points) in enumerate(by_method(rows).items()):
        points = sorted(points, key=lambda r: r["share"])
        errors = [r["fid_stderr"] or 0.0 for r in points]
        style = {"marker": MARKERS[i % len(MARKERS)], "color": COLORS[i % len(COLORS)], "capsize": 3}
        ax.errorbar([r["share"] for r in points], [r["fid"] for r in points], yerr=errors, label=method, **style)
    ax.set_xlabel("share of steps, from the data end, taken by the base model")
    ax.set_ylabel("FID (lower is better)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend()
    figure.suptitle(f"Chain of forgetting, {rows[0]['size']}\n{provenance_line(rows)}", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
