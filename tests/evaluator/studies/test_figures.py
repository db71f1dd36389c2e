"""What a study's plots must show whatever its variants are called."""

import pytest

from evaluator.studies.figures import bars_figure

LONG = "mode=overlap max-policy-lag={} objective=decoupled"


def bars(names: list[str]):
    score = {"games": {"coinrun": {"normalized": 0.5, "normalized_interval": None}}}
    figure = bars_figure({"games": ["coinrun"], "variants": dict.fromkeys(names, score)})
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    "names",
    [["a", "b"], [LONG.format(lag) for lag in range(7)], [LONG.format(lag) + " width=2" * 12 for lag in range(2)]],
    ids=["short", "long", "longer than the plot is wide"],
)
def test_legend_lies_inside_the_plot_and_above_the_axes(names):
    figure = bars(names)
    (legend,), (axes,) = figure.legends, figure.axes
    inside, drawn = figure.bbox, legend.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == names
    assert inside.x0 <= drawn.x0 and drawn.x1 <= inside.x1 and drawn.y1 <= inside.y1
    assert axes.get_window_extent().y1 <= drawn.y0


def test_plot_grows_by_the_rows_of_its_legend():
    low, high = (bars([name.format(lag) for lag in range(4)]) for name in ("lag={}", LONG))
    assert low.axes[0].get_window_extent().height == pytest.approx(high.axes[0].get_window_extent().height, rel=0.05)
    assert low.get_figheight() < high.get_figheight()
