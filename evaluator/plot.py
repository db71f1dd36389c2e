"""scores.png: training and held-out score against frames."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from common.config import Config
from evaluator.level_sets import SPLITS, Split

# Blue and orange of Okabe and Ito's palette: told apart with any colour vision, and in grey.
_COLORS: dict[Split, str] = {"train": "#0072B2", "held_out": "#D55E00"}
_NAMES: dict[Split, str] = {"train": "training levels", "held_out": "held-out levels"}
_GREY = "#666666"


def draw_scores(rows: Sequence[dict[str, Any]], config: Config) -> bytes:
    """A png of both splits' mean return, oldest row first, with bands of one standard error.

    Uses matplotlib's objects without pyplot, which keeps global state and is not for threads.
    """
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for split in SPLITS:
        frames = [row["frames"] for row in rows]
        means = [row[split]["mean"] for row in rows]
        margins = [row[split]["stderr"] or 0.0 for row in rows]
        low = [mean - margin for mean, margin in zip(means, margins, strict=True)]
        high = [mean + margin for mean, margin in zip(means, margins, strict=True)]
        axes.fill_between(frames, low, high, color=_COLORS[split], alpha=0.15, linewidth=0)
        axes.plot(frames, means, color=_COLORS[split], linewidth=1.8, marker="o", markersize=3)
    _label_ends(axes, rows)
    training = f"{config.num_levels} training levels" if config.num_levels else "all levels"
    axes.set_title(
        f"{config.env_name} {config.distribution_mode}: {training}, {rows[-1]['held_out']['levels']} held-out levels",
        loc="left",
    )
    axes.set_xlabel("frames")
    axes.set_ylabel("episode return, mean over levels ± standard error", color=_GREY)
    axes.margins(y=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _label_ends(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Names each line at its right end, the higher one above its point and the lower one below."""
    last = rows[-1]
    upper = max(SPLITS, key=lambda split: last[split]["mean"])
    for split in SPLITS:
        axes.annotate(
            f"{_NAMES[split]} {last[split]['mean']:.2f}",
            (last["frames"], last[split]["mean"]),
            xytext=(6, 5 if split == upper else -5),
            textcoords="offset points",
            va="bottom" if split == upper else "top",
            color=_COLORS[split],
            annotation_clip=False,
        )


def _short(frames: float) -> str:
    """1500000 as 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if frames >= size:
            return f"{frames / size:g}{suffix}"
    return f"{frames:g}"
