import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewound.experiment.students_t import MOST_SEEDS, cdf, p_value, pairs_needed, power, quantile

stats = pytest.importorskip("scipy.stats")


@given(st.floats(-60, 60), st.integers(1, 200))
def test_the_distribution_is_scipys(t, degrees):
    assert cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-9)  # scipy's is no better near 0


@given(st.floats(0.001, 0.999), st.integers(1, 60))
def test_quantiles_are_scipys(probability, degrees):
    assert quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-9
    )


def test_p_values_have_two_sides():
    assert p_value(-2.5, 3) == p_value(2.5, 3) == pytest.approx(2 * stats.t.sf(2.5, 3))


@pytest.mark.parametrize("count", [2, 3, 5, 12, 30])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 2.5])
def test_power_is_that_of_the_noncentral_t(count, effect):
    degrees, shift = count - 1, effect * math.sqrt(count)
    critical = stats.t.ppf(0.975, degrees)
    other = stats.nct.sf(critical, degrees, shift) + stats.nct.cdf(-critical, degrees, shift)
    assert power(effect, count) == pytest.approx(other, abs=2e-6)


def test_pairs_needed_is_the_smallest_count_with_that_power():
    for effect in (0.4, 0.9, 3.0):
        count = pairs_needed(effect)
        assert power(effect, count) >= 0.8 > power(effect, count - 1)
    assert pairs_needed(-0.9) == pairs_needed(0.9)
    assert pairs_needed(0.9, level=0.01) > pairs_needed(0.9)
    assert pairs_needed(2 / MOST_SEEDS) is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 1 degree"):
        cdf(1.0, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(1.0, 3)
