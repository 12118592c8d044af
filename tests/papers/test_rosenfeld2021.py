import cmath
import random

import pytest

from rewound.papers.rosenfeld2021 import ScalingLaw, fit_scaling_law

pytest.importorskip("scipy")
DENSITIES = [0.8**k for k in range(1, 26)]
LAWS = [(0.07, 0.9, 1.2, 0.004), (0.25, 0.9, 0.6, 0.03), (0.1, 0.5, 2.5, 0.01)]


@pytest.mark.parametrize(("dense", "up", "slope", "knee"), LAWS)
def test_the_law_is_the_papers_with_a_complex_number(dense, up, slope, knee):
    law = ScalingLaw(dense, up, slope, knee, {})
    for d in DENSITIES:
        ratio = (up / dense) ** (1 / slope)
        paper = dense * abs(((d - 1j * knee * ratio) / (d - 1j * knee)) ** slope)
        assert law.error(d) == pytest.approx(paper)
    assert law.error(1e-12) == pytest.approx(up)
    assert cmath.isclose(law.density(law.error(0.05)), 0.05, rel_tol=1e-6)
    assert law.density(dense) == 1.0
    with pytest.raises(ValueError, match="saturates"):
        law.density(0.95)


@pytest.mark.parametrize(("dense", "up", "slope", "knee"), LAWS)
def test_a_fit_finds_the_law_again(dense, up, slope, knee):
    law = ScalingLaw(dense, up, slope, knee, {})
    found = fit_scaling_law({d: law.error(d) for d in DENSITIES}, dense)
    assert (found.saturation, found.slope, found.knee) == pytest.approx((up, slope, knee), rel=1e-3)
    assert abs(found.mean_deviation) < 1e-6


def test_a_fit_to_noisy_errors_predicts_errors_between_them():
    law, draw = ScalingLaw(0.07, 0.9, 1.2, 0.004, {}), random.Random(1)
    noisy = {d: law.error(d) * (1 + draw.gauss(0, 0.02)) for d in DENSITIES[::2]}
    found = fit_scaling_law(noisy, 0.07)
    for d in DENSITIES[1::2]:
        assert found.error(d) == pytest.approx(law.error(d), rel=0.06)


@pytest.mark.parametrize(
    ("errors", "says"),
    [({0.5: 0.1, 0.2: 0.2, 0.1: 0.3}, "at least 4"), ({0.5: 0.1, 0.2: 0.2, 0.1: 0.3, 2: 0.4}, "got 2")],
)
def test_too_little_or_wrong_data_is_refused(errors, says):
    with pytest.raises(ValueError, match=says):
        fit_scaling_law(errors, 0.1)
