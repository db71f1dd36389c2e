"""What a study's plots must show whatever its variants are called."""

import pytest

from evaluator.studies.figures import bars_figure, settings_figure, varied_numbers

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


def of_settings(*variants):
    """A summary of variants with these settings, IQM and interval."""
    entries = [{"settings": own, "iqm": {"value": value, "interval": ends}} for own, value, ends in variants]
    return {"variants": {str(index): entry for index, entry in enumerate(entries)}}


LAGS = of_settings(
    ({"max_policy_lag": 0, "objective": "standard"}, 0.5, [0.4, 0.6]),
    ({"max_policy_lag": 16, "objective": "standard"}, 0.1, None),
    ({"max_policy_lag": 4, "objective": "standard"}, 0.2, [0.1, 0.3]),
    ({"max_policy_lag": 4, "objective": "decoupled"}, 0.4, None),
)


def test_scores_are_drawn_against_a_varied_number_in_its_order():
    (axes,) = settings_figure(LAGS).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "4", "16"]
    assert axes.get_xlabel() == "--max-policy-lag"
    drawn = {line.get_label(): line for line in axes.get_lines() if line.get_label().startswith("objective=")}
    assert sorted(drawn) == ["objective=decoupled", "objective=standard"]
    standard, decoupled = drawn["objective=standard"], drawn["objective=decoupled"]
    assert list(standard.get_ydata()) == [0.5, 0.2, 0.1]
    assert [round(place) for place in standard.get_xdata()] == [0, 1, 2]
    assert list(decoupled.get_ydata()) == [0.4] and round(decoupled.get_xdata()[0]) == 1


def test_only_numbers_with_three_values_are_plotted_against():
    assert varied_numbers(LAGS) == {"max_policy_lag": [0, 4, 16]}
    published = {"settings": {}, "iqm": {"value": 0.3, "interval": None}}  # its settings are not ours
    assert varied_numbers({"variants": {**LAGS["variants"], "published": published}}) == {"max_policy_lag": [0, 4, 16]}
    two = of_settings(*(({"gamma": gamma, "repeatable": gamma > 0.9}, 0.5, None) for gamma in (0.9, 0.99)))
    assert varied_numbers(two) == varied_numbers(of_settings(({}, 0.5, None))) == {}


def test_several_varied_numbers_have_a_panel_each():
    pairs = [(gamma, width) for gamma in (0.9, 0.95, 0.99) for width in (1, 2, 3)]
    figure = settings_figure(of_settings(*(({"gamma": gamma, "width": width}, 0.5, None) for gamma, width in pairs)))
    assert [axes.get_xlabel() for axes in figure.axes] == ["--gamma", "--width"]
    assert [len(axes.get_legend().get_texts()) for axes in figure.axes] == [3, 3]


def test_settings_are_named_as_in_variants():
    (axes,) = settings_figure(
        of_settings(*(({"max_policy_lag": lag, "repeatable": False}, 0.5, None) for lag in (1, 4, 16)))
    ).axes
    assert "repeatable=no" in [line.get_label() for line in axes.get_lines()]


def test_ticks_of_large_numbers_that_are_close_differ():
    (axes,) = settings_figure(of_settings(*(({"total_frames": 10**6 + i}, 0.5, None) for i in range(3)))).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1000000", "1000001", "1000002"]
