"""The plots of a study, from its summary: curves, IQM against frames, performance profile, bars by game, and the IQM
against each number that was varied.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.config import SETTINGS, flag
from evaluator.output.plot import png
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.variants import setting_text

# Okabe and Ito's palette, whose colors readers with color blindness can tell apart; gray is for published scores.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")  # more variants than colors differ in their lines
_GREY = "#777777"
_LEGEND_POINTS = 8
_PANELS_IN_A_ROW = 4  # at most
_FEWEST_VALUES = 3  # of a number to be plotted against; two are a comparison

Summary = dict[str, Any]


def plots(summary: Summary) -> dict[str, bytes]:
    """PNG files by name: `curves` and `iqm` if there is more than one score of each run, `profile`, `bars`, and
    `settings` if a number was varied.
    """
    makers = {"profile": profile_figure, "bars": bars_figure}
    if summary["curves"]:
        makers = {"curves": curves_figure, "iqm": iqm_figure} | makers
    if varied_numbers(summary):
        makers["settings"] = settings_figure
    return {name: png(make(summary)) for name, make in makers.items()}


def curves_figure(summary: Summary) -> Figure:
    """Mean return against frames, one panel for each game, with bands over seeds."""
    games = summary["games"]
    rows = math.ceil(len(games) / _PANELS_IN_A_ROW)
    columns = math.ceil(len(games) / rows)  # with few empty places
    figure = _figure(max(5.0, 3.2 * columns), 2.4 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, game in zip(panels, games, strict=False):
        for variant, curves in summary["curves"].items():
            _draw(axes, curves["games"][game], _style(summary, variant), variant)
        axes.set_title(game, loc="left", fontsize=10)
        _finish(axes, frames=True)
    for axes in panels[len(games) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("episode return", fontsize=8)
    _legend(figure, panels[0])
    return figure


def iqm_figure(summary: Summary) -> Figure:
    """The interquartile mean of normalized scores against frames."""
    figure = _figure(6.5, 4.0)
    axes = figure.subplots()
    for variant, curves in summary["curves"].items():
        _draw(axes, curves["iqm"], _style(summary, variant), variant)
    axes.set_ylabel("IQM of normalized scores")
    _finish(axes, frames=True)
    _legend(figure, axes)
    return figure


def profile_figure(summary: Summary) -> Figure:
    """The share of runs above each normalized score."""
    figure = _figure(6.5, 4.0)
    axes = figure.subplots()
    thresholds = summary["profile"]["thresholds"]
    for variant, own in summary["profile"]["variants"].items():
        curve = {"frames": thresholds, "value": own["share"], "low": own["low"], "high": own["high"]}
        _draw(axes, curve, _style(summary, variant), variant, marker=None)
    axes.set_xlabel("normalized score τ")
    axes.set_ylabel("share of runs with score > τ")
    axes.set_ylim(-0.02, 1.02)
    _finish(axes)
    _legend(figure, axes)
    return figure


def bars_figure(summary: Summary) -> Figure:
    """The normalized mean of each game, one bar for each variant, with intervals over seeds."""
    games, variants = summary["games"], list(summary["variants"])
    width = 0.8 / len(variants)
    figure = _figure(max(5.0, 1.6 + 0.35 * len(games) * (len(variants) + 1)), 4.0)
    axes = figure.subplots()
    for index, variant in enumerate(variants):
        color, _ = _style(summary, variant)
        places = np.arange(len(games)) + (index - (len(variants) - 1) / 2) * width
        own = [summary["variants"][variant]["games"][game] for game in games]
        axes.bar(places, [game["normalized"] for game in own], width * 0.92, color=color, alpha=0.75, label=variant)
        for place, game in zip(places, own, strict=True):
            if game["normalized_interval"] is not None:
                error = _error(game["normalized"], game["normalized_interval"])
                axes.errorbar([place], [game["normalized"]], error, color="black", linewidth=1, capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(games)), games, rotation=0 if len(games) < 6 else 45, ha="center")
    axes.set_ylabel("normalized score")
    _finish(axes)
    _legend(figure, axes)
    return figure


def varied_numbers(summary: Summary) -> dict[str, list[float]]:
    """The settings that are numbers and have at least three values, with these values in ascending order."""
    settings = [own["settings"] for own in summary["variants"].values() if own["settings"]]
    found: dict[str, list[float]] = {}
    for name in settings[0] if settings else ():
        values = [own[name] for own in settings]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[name] = sorted(set(values))
    return {name: values for name, values in found.items() if len(values) >= _FEWEST_VALUES}


def settings_figure(summary: Summary) -> Figure:
    """The IQM against each number that was varied, one line for each combination of the other settings.

    Values are equally far apart: often they are powers, or begin with 0.
    """
    numbers = varied_numbers(summary)
    figure = _figure(max(5.0, 4.0 * len(numbers)), 4.0)
    for axes, (name, values) in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers.items(), strict=True):
        lines: dict[str, list[Summary]] = {}
        for own in summary["variants"].values():
            if own["settings"]:
                others = [setting_text(other, value) for other, value in own["settings"].items() if other != name]
                lines.setdefault(" ".join(others) or "IQM", []).append(own)
        for index, (label, variants) in enumerate(lines.items()):
            variants.sort(key=lambda own: own["settings"][name])
            # Beside each other, so that intervals do not hide one another.
            aside = (index - (len(lines) - 1) / 2) * 0.06
            places = [values.index(own["settings"][name]) + aside for own in variants]
            color, line = _style_of(index)
            scores = [own["iqm"]["value"] for own in variants]
            axes.plot(places, scores, line, color=color, linewidth=1.4, marker="o", markersize=4, label=label)
            for place, own in zip(places, variants, strict=True):
                error = _error(own["iqm"]["value"], own["iqm"]["interval"])
                axes.errorbar([place], [own["iqm"]["value"]], error, color=color, linewidth=1, capsize=2)
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlabel(flag(name) if name in SETTINGS else name, fontsize=8)
        _finish(axes)
        if len(numbers) > 1:
            axes.legend(frameon=False, fontsize=_LEGEND_POINTS)
    figure.axes[0].set_ylabel("IQM of normalized scores")
    if len(numbers) == 1:
        _legend(figure, figure.axes[0])
    return figure


def _figure(width: float, height: float) -> Figure:
    """Without pyplot, which keeps global state."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(summary: Summary, variant: str) -> tuple[str, str]:
    """Color and line of a variant, the same in every figure."""
    if variant == PUBLISHED:
        return _GREY, "-"
    return _style_of(list(summary["variants"]).index(variant))


def _style_of(index: int) -> tuple[str, str]:
    return _COLORS[index % len(_COLORS)], _LINES[index // len(_COLORS) % len(_LINES)]


def _draw(axes: Any, curve: dict[str, Any], style: tuple[str, str], label: str, marker: str | None = ".") -> None:
    color, line = style
    axes.plot(
        curve["frames"], curve["value"], line, color=color, linewidth=1.6, marker=marker, markersize=4, label=label
    )
    low, high = (np.array(curve[end], dtype=float) for end in ("low", "high"))  # None becomes nan: no band there
    if np.isfinite(low).any():
        axes.fill_between(curve["frames"], low, high, color=color, alpha=0.15, linewidth=0)


def _error(value: float, interval: Sequence[float] | None) -> list[list[float]] | None:
    """As matplotlib wants it: distances below and above."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _finish(axes: Any, frames: bool = False) -> None:
    if frames:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("frames", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, axes: Any) -> None:
    """Above the plot, in as many columns as fit; the figure grows by what the legend needs."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(4, len(labels)), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=_LEGEND_POINTS
        )
        missing = legend.get_window_extent().width - figure.bbox.width
        if missing <= 0 or columns == 1:
            break
        legend.remove()
    figure.set_figwidth(figure.get_figwidth() + max(0.0, missing) / figure.dpi)
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + (rows - 1) * _LEGEND_POINTS * 1.5 / 72)
