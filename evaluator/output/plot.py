"""scores.png, training and held-out score against frames, and levels.png, every level at every checkpoint."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.config import Config
from common.text import format_count
from evaluator.levels.level_sets import SPLITS, Split
from evaluator.output.published import PAPER_FRAMES, published_runs
from evaluator.output.scoreboard import LevelHistory

# A matplotlibrc in the current directory counts before the variable that names one.
matplotlib.rcdefaults()

# Blue and orange from Okabe and Ito's palette; readers with color blindness can tell them apart, also in grayscale.
_COLORS = {"train": "#0072B2", "held_out": "#D55E00"}
_GREY = "#666666"
_MAX_LABELLED_LEVELS = 60  # more labels are not readable


def scores_figure(rows: Sequence[dict[str, Any]], config: Config) -> Figure:
    """The training and held-out mean return and the gap, with 95 % intervals; oldest row first.

    Uses matplotlib without pyplot, which keeps global state and is not thread-safe.
    """
    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    scores, gap = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    frames = [row["frames"] for row in rows]
    for split, color in _COLORS.items():
        _draw_line(scores, frames, [(row[split]["mean"], row[split].get("interval")) for row in rows], color)
    _draw_published(scores, rows[-1]["frames"], config)
    _label_ends(scores, rows[-1])
    gaps = [(row["generalization_gap"], row.get("generalization_gap_interval")) for row in rows]
    _draw_line(gap, frames, gaps, _GREY)
    if reason := rows[-1].get("generalization_gap_no_interval"):
        gap.set_title(f"no interval for the gap: {reason}", loc="left", fontsize=7, color=_GREY)
    gap.axhline(0, color="black", linewidth=0.8)
    training = format_count(config.num_levels, "training level") if config.num_levels else "all levels"
    scores.set_title(f"{config.game}: {training}, {rows[-1]['held_out']['levels']} held-out levels", loc="left")
    scores.set_ylabel("episode return, 95 % interval", color=_GREY)
    gap.set_ylabel("generalization gap", color=_GREY)
    gap.set_xlabel("frames")
    gap.set_xlim(left=0)
    gap.xaxis.set_major_locator(MaxNLocator(6))
    gap.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.5M
    for axes in (scores, gap):
        axes.margins(y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def levels_figure(history: LevelHistory, config: Config) -> Figure:
    """Every level's mean return at every checkpoint, one panel per split.

    The levels with the highest mean over time are on top; gray where a checkpoint did not play a level.
    """
    tables = {split: _returns(history, split) for split in SPLITS if history.versions(split)}
    tallest = max(len(levels) for levels, _ in tables.values())
    figure = Figure(
        figsize=(3.2 * len(tables) + 1.5, min(14.0, max(4.0, 0.16 * tallest))), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    low = min(float(np.nanmin(table)) for _, table in tables.values())
    high = max(float(np.nanmax(table)) for _, table in tables.values())
    for axes, (split, (levels, table)) in zip(panels, tables.items(), strict=True):
        versions = history.versions(split)
        axes.set_facecolor("#bbbbbb")
        image = axes.imshow(
            table, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=max(high, low + 1e-9)
        )
        axes.set_title(f"{split}, {format_count(len(levels), 'level')}", loc="left", fontsize=10)
        axes.set_xlabel("policy_version")
        ticks = sorted({round(place) for place in np.linspace(0, len(versions) - 1, min(6, len(versions)))})
        axes.set_xticks(ticks, [str(versions[place]) for place in ticks], fontsize=7)
        if len(levels) <= _MAX_LABELLED_LEVELS:
            axes.set_yticks(range(len(levels)), [str(level) for level in levels], fontsize=6)
        else:
            axes.set_yticks([])
    panels[0].set_ylabel("level, easiest on top")
    figure.colorbar(image, ax=list(panels), label="mean episode return", shrink=0.6)
    figure.suptitle(str(config.game), x=0.01, ha="left", fontsize=11)
    return figure


def _returns(history: LevelHistory, split: Split) -> tuple[list[int], np.ndarray]:
    """(levels, float `[levels, versions]`, nan where not played), easiest first."""
    levels = history.levels(split)
    played = [history.at(split, version) for version in history.versions(split)]
    table = np.array([[s[level].mean_return if level in s else np.nan for s in played] for level in levels])
    order = np.argsort(-np.nanmean(table, axis=1), kind="stable")
    return [levels[i] for i in order], table[order]


Point = tuple[float, Sequence[float] | None]  # value, interval if the data support one


def _draw_line(axes: Any, frames: Sequence[int], points: Sequence[Point], color: str) -> None:
    values = [value for value, _ in points]
    low, high = zip(*(interval or (np.nan, np.nan) for _, interval in points), strict=True)  # nan: not drawn
    axes.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(frames, values, color=color, linewidth=1.8, marker="o", markersize=3)


def _draw_published(axes: Any, frames: int, config: Config) -> None:
    """The published PPO if it was trained on this run's levels: at the end of the paper's runs, and before that."""
    runs = published_runs(config)
    if runs is None:
        return
    end = PAPER_FRAMES[runs.preset]
    last = runs.at(end)
    assert last is not None
    for split, (name, scores) in zip(_COLORS, last.items(), strict=True):
        score = float(np.mean(scores))
        axes.axhline(score, color=_COLORS[split], linewidth=1, linestyle="--", alpha=0.7)
        axes.annotate(
            f"published PPO, {end // 1_000_000}M frames, {name} {score:.1f}",
            (0, score),
            xytext=(4, 2),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            color=_COLORS[split],
            fontsize=7,
        )
    # Only up to the run's frames, so that a short run's axis is not stretched.
    points = sum(point <= frames for point in runs.frames)
    for table, color in zip((runs.train, runs.test), _COLORS.values(), strict=True):
        axes.scatter(runs.frames[:points], table[:points].mean(axis=1), color=color, marker="x", s=25, zorder=3)


def _label_ends(axes: Any, last: dict[str, Any]) -> None:
    """Names each line at its right end, the higher one above its point and the lower one below."""
    names = {"train": "training levels", "held_out": f"held-out levels ({last['held_out_split']})"}
    upper = max(_COLORS, key=lambda split: last[split]["mean"])
    for split, color in _COLORS.items():
        axes.annotate(
            f"{names[split]} {last[split]['mean']:.2f}{'' if last[split].get('interval') else ' (no interval)'}",
            (last["frames"], last[split]["mean"]),
            xytext=(6, 5 if split == upper else -5),
            textcoords="offset points",
            va="bottom" if split == upper else "top",
            color=color,
            annotation_clip=False,
        )


def png(figure: Figure) -> bytes:
    """The figure as a png file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
