"""The second axis of a figure: one line that collapses does not press the others together."""

import pytest

from rewound.report.figures.scales import most_of

USUAL = [0.9 - 0.001 * k for k in range(40)]


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def test_what_collapses_leaves_the_figure_and_is_told(axes):
    values = [*USUAL, 0.1, 0.2]
    axes.plot(values)
    most_of(axes, values)
    low, high = axes.get_ylim()
    assert 0.7 < low < min(USUAL) and high > max(USUAL)
    assert [text.get_text() for text in axes.texts] == ["2 medians further lower: see the numbers"]


def test_what_explodes_leaves_it_on_the_other_side(axes):
    values = [-value for value in [*USUAL, 0.1]]
    axes.plot(values)
    most_of(axes, values)
    assert -0.7 > axes.get_ylim()[1] > -min(USUAL)
    assert [text.get_text() for text in axes.texts] == ["1 median further higher: see the numbers"]


@pytest.mark.parametrize("values", [USUAL, [0.9, 0.1], [0.5] * 12, []])
def test_an_even_spread_a_few_values_or_one_alone_are_drawn_whole(axes, values):
    axes.plot(values)
    before = axes.get_ylim()
    most_of(axes, values)
    assert axes.get_ylim() == before and not axes.texts
