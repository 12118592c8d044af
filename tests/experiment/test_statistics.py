import pytest

from rewound.experiment.statistics import (
    Spread,
    common_densities,
    controls,
    last_densities,
    milestones,
    original,
    spreads,
)


def test_spreads_are_median_and_range_over_seeds(make_results):
    results = make_results({"lr-rewinding": 0.0}, seeds=3, noise=0.0)
    for arm, value in zip(results["arms"], (0.5, 0.7, 0.6)):
        arm["rounds"][-1]["metrics"]["accuracy"] = value
    last = min(spreads(results)["lr-rewinding"])
    assert spreads(results)["lr-rewinding"][last] == Spread(0.6, 0.5, 0.7, 3)


def test_failed_arms_count_nowhere(make_results):
    results = make_results()
    results["arms"][0] = {"technique": "fine-tuning", "seed": 0, "status": "failed", "error": "no"}
    assert {s.count for s in spreads(results)["fine-tuning"].values()} == {2}
    assert original(results).count == 3  # the other techniques trained that seed's original run too


def test_only_densities_that_all_arms_reached_are_compared(make_results):
    results = make_results()
    del results["arms"][0]["rounds"][5:]
    assert common_densities(results) == pytest.approx([0.8**k for k in range(5)], abs=1e-6)


def test_a_metric_that_is_not_a_number_is_no_point_of_the_curve(make_results):
    results = make_results({"lr-rewinding": 0.0}, seeds=1)
    results["arms"][0]["rounds"][3]["metrics"]["accuracy"] = float("nan")
    assert len(common_densities(results)) == 10


def test_the_round_that_a_metric_stopped_at_is_no_point_of_the_curve(make_results):
    results = make_results({"lr-rewinding": 0.0}, seeds=1, rounds=5)
    results["arms"][0]["best"] = 3
    assert common_densities(results)[-1] == pytest.approx(0.8**3)


def test_the_rounds_of_a_control_do_not_replace_its_original_run(make_control):
    results = make_control()
    assert original(results).median == 0.7
    assert spreads(results)["lr-rewinding"][1.0].median == 0.7
    assert controls(results)["lr-rewinding"].median == 0.9
    assert last_densities(results)["lr-rewinding"].low == 1.0


def test_milestones_keep_both_ends():
    densities = [0.8**k for k in range(18)]
    chosen = milestones(densities)
    assert (chosen[0], chosen[-1], len(chosen)) == (1.0, 0.8**17, 6)
    assert milestones(densities[:3]) == densities[:3]
