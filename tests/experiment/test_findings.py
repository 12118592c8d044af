from rewound.experiment.findings import findings


def test_clear_differences_are_said_with_their_numbers(make_results):
    first, second, third = findings(make_results())
    assert first.startswith("At density 0.107 (9.31x) the median validation accuracy is lr-rewinding 0.9")
    assert second.startswith("There every seed of the better")
    assert third.startswith("The median stays within 0.01 of the original run's accuracy down to density ")


def test_overlapping_seeds_are_called_overlapping(make_results):
    lost = {"fine-tuning": 0.2, "weight-rewinding": 0.02, "lr-rewinding": 0.02}
    second = findings(make_results(lost))[1]
    assert second == (
        "There every seed of weight-rewinding and lr-rewinding beats every seed of fine-tuning; "
        "the seeds of weight-rewinding and lr-rewinding overlap."
    )
    assert findings(make_results(dict.fromkeys(lost, 0.02)))[1].startswith(
        "There the seeds of all techniques overlap"
    )


def test_one_seed_tells_nothing_apart(make_results):
    assert findings(make_results(seeds=1))[1] == "With one seed there is no telling a difference from chance."


def test_where_lower_is_better_the_lowest_comes_first(make_results):
    results = make_results(
        {"a": -0.3, "b": -0.1}, metric="mse", higher_is_better=False
    )  # both rise, a the most
    first, second, third = findings(results)
    assert first.index(" b ") < first.index(" a ")
    assert second == "There every seed of b beats every seed of a."
    of_b, of_a = third.rpartition("density ")[2].rstrip(".").split(", ")
    assert float(of_b.removesuffix(" with b")) < float(of_a.removesuffix(" with a"))


def test_of_many_techniques_only_the_best_is_compared_with_the_others(make_results):
    lost = {"a": 0.0, "b": 0.0, "c": 0.3, "d": 0.3, "e": 0.6}
    second = findings(make_results(lost))[1]
    best, other = ("a", "b") if "the seeds of a" in second else ("b", "a")
    assert second.startswith(f"There every seed of {best} beats every seed of ")
    assert second.endswith(f"; the seeds of {best} overlap those of {other}.")
    assert all(name in second for name in ("c", "d", "e"))


def test_a_technique_that_never_keeps_up_is_not_said_to_hold_at_density_1(make_results):
    results = make_results({"good": 0.0, "bad": 0.0}, noise=0.0)
    for arm in results["arms"]:
        for done in arm["rounds"][1:]:
            done["metrics"]["accuracy"] -= 0.1 * (arm["technique"] == "bad")
    assert findings(results)[2].endswith("down to density 0.107 with good, and at no density with bad.")


def test_beating_the_original_run_is_put_down_to_longer_training(make_results):
    sentences = findings(make_results({"lr-rewinding": -0.02, "fine-tuning": 0.1}))
    assert sentences[-1].startswith(
        "That lr-rewinding ends better than the original run may be its longer training"
    )


def test_one_seed_has_no_median(make_results):
    says = " ".join(findings(make_results({"lr-rewinding": 0.0}, seeds=1)))
    assert "median" not in says
    assert (
        "It stays within 0.01 of the original run's accuracy down to density 0.107 with lr-rewinding." in says
    )


def test_a_dense_control_is_compared_with_its_own_original_run(make_control):
    (says,) = findings(make_control())
    assert says == (
        "Nothing was pruned: this is a dense control. After its last round the validation accuracy is "
        "lr-rewinding 0.900 (original run: 0.700)."
    )


def test_runs_that_share_no_density_below_1_are_not_compared(make_results):
    results = make_results({"a": 0.1, "b": 0.1}, rounds=3)
    for arm in results["arms"]:
        arm["best"] = 0 if arm["technique"] == "a" else 2
    assert findings(results) == [
        "No density below 1 was reached by every run, so there is none to compare at; they ended at: a 1, b 0.64."
    ]


def test_a_metric_that_never_was_a_number_is_said(make_results):
    results = make_results()
    for arm in results["arms"]:
        for done in arm["rounds"]:
            done["metrics"] = {"accuracy": None}
    assert findings(results) == [
        "The validation accuracy was no number in any round, so nothing can be said."
    ]


def test_nothing_finished_nothing_said(make_results):
    results = make_results()
    for arm in results["arms"]:
        arm["status"] = "failed"
    assert findings(results) == []
