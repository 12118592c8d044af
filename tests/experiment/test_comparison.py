import random

import pytest

from rewound.experiment.comparison import (
    compare,
    compare_all,
    holm,
    paired_p,
    sign_flip_p,
    told,
)
from rewound.experiment.series import series_of
from rewound.experiment.students_t import pairs_needed
from rewound.experiment.summary import summarize

stats = pytest.importorskip("scipy.stats")


def test_a_summary_is_scipys_interval():
    values = [0.91, 0.94, 0.93, 0.90, 0.95]
    found = summarize(values)
    low, high = stats.t.interval(0.95, 4, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.median, found.smallest, found.largest, found.count) == (0.93, 0.90, 0.95, 5)
    alone = summarize([0.9])
    assert (alone.mean, alone.low, alone.high, alone.deviation) == (0.9, None, None, None)
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite numbers"):
            summarize(bad)


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_is_scipys(seed):
    draw = random.Random(seed)
    a, b = ([draw.gauss(0.9, 0.01) for _ in range(3 + seed)] for _ in "ab")
    expected = stats.ttest_rel(a, b).pvalue
    assert paired_p([x - y for x, y in zip(a, b)]) == pytest.approx(expected)


def test_the_sign_flip_test_is_scipys():
    draw = random.Random(1)
    values = [draw.gauss(0.3, 1) for _ in range(8)]
    exact = stats.permutation_test(
        (values,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10**6,
    ).pvalue
    assert sign_flip_p(values) == pytest.approx(exact)


def test_three_to_five_seeds_cannot_show_anything_by_sign_flips():
    assert [sign_flip_p([1.0] * n) for n in (3, 4, 5, 6)] == [0.25, 0.125, 0.0625, 0.03125]
    assert sign_flip_p([1.0] * 40) is None


def test_holm_steps_down_and_never_falls():
    assert holm({"a": 0.01, "b": 0.03, "c": 0.02}) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_differences_without_scatter_prove_nothing():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([1 / 360] * 3) is None  # one image of the validation set, three times
    assert paired_p([0.5]) is None


def test_pairs_are_made_by_seed(make_study):
    study = make_study({"a": {0: 0.90, 1: 0.80, 2: 0.70}, "b": {1: 0.79, 2: 0.69, 3: 0.99}})
    (found,) = compare(series_of(study), "b", 0.1)
    assert found.by_seed == pytest.approx({1: 0.01, 2: 0.01})
    assert found.better and not found.shown


def test_a_real_difference_is_shown_and_told(make_study):
    study = make_study({"a": {0: 0.92, 1: 0.815, 2: 0.722}, "b": {0: 0.90, 1: 0.80, 2: 0.70}})
    (found,) = compare(series_of(study), "b", 0.1)
    assert found.shown and found.needed is None and found.low > 0
    assert told(found, "accuracy").startswith("a is better than b: +0.019 accuracy (95 % interval")
    (lower,) = compare(series_of(study), "b", 0.1, higher_is_better=False)
    assert told(lower, "error").startswith("a is worse than b")


def test_a_tiny_p_value_is_no_zero(make_study):
    values = {s: 0.5 + s / 1e6 for s in range(40)}
    study = make_study({"a": {s: v + 0.3 + (s % 2) / 1e5 for s, v in values.items()}, "b": values})
    (found,) = compare(series_of(study), "b", 0.1)
    assert "p < 1e-06" in told(found, "accuracy")


def test_no_difference_shown_says_how_many_seeds_it_would_take(make_study):
    study = make_study({"a": {0: 0.92, 1: 0.79, 2: 0.71}, "b": {0: 0.90, 1: 0.80, 2: 0.70}})
    (found,) = compare(series_of(study), "b", 0.1)
    assert not found.shown
    assert found.needed == pairs_needed(found.mean / found.deviation)
    assert f"about {found.needed} seeds would be needed" in told(found, "accuracy")
    (alone,) = compare(series_of(make_study({"a": {0: 0.9}, "b": {0: 0.8}})), "b", 0.1)
    assert "one seed" in told(alone, "accuracy")


def test_more_comparisons_ask_for_more(make_study):
    three = {
        "a": {0: 0.92, 1: 0.815, 2: 0.722},
        "b": {0: 0.90, 1: 0.80, 2: 0.70},
        "c": {0: 0.91, 1: 0.80, 2: 0.69},
    }
    both = compare_all(series_of(make_study(three)), 0.1)
    alone = compare_all(series_of(make_study({k: three[k] for k in "ab"})), 0.1)
    assert len(both) == 3
    found = next(d for d in both if {d.series, d.baseline} == {"a", "b"})
    assert found.p == alone[0].p and found.adjusted == pytest.approx(3 * found.p)
    with pytest.raises(ValueError, match="there are a, b, c"):
        compare(series_of(make_study(three)), "d", 0.1)


# ---- null experiments: one technique under several names, 200 times --------------------------------------------------


def _false_positives(make_study, names, seeds, value):
    """How many of 200 experiments show any difference, where there is none."""
    draw, shown = random.Random(2020), 0
    for _ in range(200):
        easy = {seed: draw.gauss(0, 0.02) for seed in range(seeds)}  # what a seed does to every technique
        study = make_study({name: {s: value(draw, easy[s]) for s in easy} for name in names})
        shown += any(d.shown for d in compare_all(series_of(study), 0.1))
    return shown


def _gaussian(draw, easy):
    return 0.9 + easy + draw.gauss(0, 0.004)


def _counted(draw, easy):
    """Accuracy on 500 validation images: a whole number of them."""
    chance = min(0.99, 0.9 + easy)
    return sum(draw.random() < chance for _ in range(500)) / 500


def _skewed(draw, easy):
    """Now and then a run goes badly wrong."""
    return 0.9 + easy - draw.expovariate(1 / 0.004)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("value", [_gaussian, _counted, _skewed])
def test_one_technique_under_two_names_differs_in_5_of_100_experiments(make_study, seeds, value):
    shown = _false_positives(make_study, "ab", seeds, value)
    assert stats.binomtest(shown, 200, 0.05).pvalue > 0.01, f"{shown} of 200, 10 expected"


def test_four_names_together_are_no_likelier_to_differ(make_study):
    shown = _false_positives(make_study, "abcd", 4, _gaussian)  # six pairs: 26 % without Holm's rule
    assert stats.binomtest(shown, 200, 0.05, alternative="greater").pvalue > 0.01, f"{shown} of 200"


def test_the_interval_covers_the_truth_19_times_in_20(make_study):
    draw = random.Random(3)
    held = 0
    for _ in range(200):
        values = {s: 0.9 + draw.gauss(0, 0.01) for s in range(3)}
        study = make_study(
            {"a": values, "b": {s: v - 0.01 + draw.gauss(0, 0.005) for s, v in values.items()}}
        )
        (found,) = compare(series_of(study), "b", 0.1)
        held += found.low <= 0.01 <= found.high
    assert stats.binomtest(held, 200, 0.95).pvalue > 0.01, f"{held} of 200, 190 expected"
