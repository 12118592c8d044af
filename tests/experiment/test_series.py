import pytest

from rewound.experiment.matching import matching
from rewound.experiment.retraining_time import choose, safe_zone, sweeps
from rewound.experiment.series import common_densities, comparable, dense_band, series_of
from rewound.experiment.summary import summarize
from rewound.experiment.verdict import verdict


def test_a_series_are_the_runs_that_differ_in_their_seed_only(make_run):
    runs = [
        make_run({1.0: 0.9, 0.5: 0.8}, seed=s, criterion=c) for s in (0, 1) for c in ("magnitude", "random")
    ]
    one, other = series_of(_study(runs))
    assert (one.label, other.label) == ("lr-rewinding, magnitude", "lr-rewinding, random")
    assert one.seeds == [0, 1] and one.points == {1.0: {0: 0.9, 1: 0.9}, 0.5: {0: 0.8, 1: 0.8}}
    assert one.summary(0.5).median == 0.8 and one.summary(0.3) is None
    assert common_densities([one, other]) == [1.0, 0.5]


def test_runs_that_prune_once_are_one_series_with_a_point_each(make_run):
    runs = [make_run({1.0: 0.9, d: 0.8 - d}, rate="one-shot", until=d) for d in (0.5, 0.2)]
    (one,) = series_of(_study(runs))
    assert list(one.points) == [1.0, 0.5, 0.2]
    assert one.costs("epochs") == {0: 2 * 40}
    iterative = [make_run({1.0: 0.9, 0.5: 0.8}, until=d) for d in (0.5, 0.2)]
    assert [one.label for one in series_of(_study(iterative))] == [
        "lr-rewinding, until 0.5",
        "lr-rewinding, until 0.2",
    ]


def test_a_run_that_is_there_twice_or_failed_counts_once_or_not(make_run):
    run = make_run({1.0: 0.9, 0.5: 0.8})
    failed = {**make_run({1.0: 0.9}, seed=1), "status": "failed"}
    (one,) = series_of(_study([run, run, failed]))
    assert one.seeds == [0] and one.costs("epochs") == {0: 40}


def test_the_dense_band_has_each_seed_once_and_no_longer_control(make_run):
    runs = [make_run({1.0: 0.9 + s / 100, 0.5: 0.8}, technique=t, seed=s) for t in ("a", "b") for s in (0, 1)]
    control = make_run({1.0: 0.99}, rate=0, epochs=80)
    band = dense_band(_study([control, *runs]))
    assert (band.count, band.smallest, band.largest) == (2, 0.9, 0.91)
    assert dense_band(_study([control])).median == 0.99
    assert dense_band(_study([])) is None


def test_matching_ends_where_the_curve_first_falls_out(make_run):
    runs = [
        make_run({1.0: 0.90, 0.5: 0.91, 0.3: 0.88, 0.2: 0.95}, seed=0),
        make_run({1.0: 0.92, 0.5: 0.93, 0.3: 0.91, 0.2: 0.80}, seed=1),
    ]
    (one,) = series_of(_study(runs))
    found = matching(one, dense_band(_study(runs)))
    assert (
        found.density == 0.5 and found.ratio == 2
    )  # at 0.3 the median is 0.895, and the worst dense run 0.90
    assert found.by_seed == {0: 0.5, 1: 0.3}
    assert matching(one, dense_band(_study(runs)), tolerance=0.01).density == 0.3
    worse = matching(one, summarize([0.5, 0.6]), higher_is_better=False)
    assert worse.density == 1.0


@pytest.fixture
def swept(make_run):
    """Three retraining times over two seeds: 20 best on validation, 30 best on test."""
    validation = {10: (0.80, 0.82), 20: (0.88, 0.92), 30: (0.885, 0.90), 40: (0.70, 0.71)}
    test = {10: 0.7, 20: 0.8, 30: 0.99, 40: 0.6}
    return [
        make_run({1.0: 0.9, 0.5: v}, technique=f"lr-rewinding:{t}ep", seed=s, t=t, test=test[t] + s / 100)
        for t in validation
        for s, v in enumerate(validation[t])
    ]


def test_the_retraining_time_is_chosen_on_validation_and_test_only_reported(swept):
    (sweep,) = sweeps(series_of(_study(swept)))
    assert (
        sweep.family == "lr-rewinding"
        and list(sweep.at(0.5)) == [10, 20, 30, 40]
        and sweep.densities == [0.5]
    )
    found = choose(sweep, 0.5, "accuracy")
    assert found.epochs == 20 and found.validation.median == pytest.approx(0.9)
    assert found.test.mean == pytest.approx(0.805)
    for run in swept:  # whatever test says, the choice stays
        run["test"] = {"accuracy": -run["test"]["accuracy"]}
    (again,) = sweeps(series_of(_study(swept)))
    assert choose(again, 0.5, "accuracy").epochs == 20
    assert choose(sweep, 0.5, "error", higher_is_better=False).epochs == 40


def test_the_safe_zone_is_where_the_choice_is_no_more_than_a_seed(swept):
    (sweep,) = sweeps(series_of(_study(swept)))
    assert safe_zone(sweep, 0.5) == (20, 30)  # the median of 30 is above the worse seed of 20
    with pytest.raises(ValueError, match="no retraining time"):
        safe_zone(sweep, 0.25)


def test_test_is_known_at_the_end_of_a_run_only(make_run):
    runs = [
        make_run({1.0: 0.9, 0.5: 0.8, 0.25: 0.7}, technique=f"lr-rewinding:{t}ep", t=t, test=0.7)
        for t in (1, 2)
    ]
    (sweep,) = sweeps(series_of(_study(runs)))
    assert choose(sweep, 0.5, "accuracy").test is None
    assert choose(sweep, 0.25, "accuracy").test.mean == 0.7
    assert choose(sweep, 0.25, "accuracy").epochs == 1  # of equal ones the shortest


def test_runs_that_prune_once_have_their_test_at_each_density(make_run):
    runs = [
        make_run(
            {1.0: 0.9, d: 0.8 - t / 100},
            technique=f"lr-rewinding:{t}ep",
            t=t,
            rate="one-shot",
            until=d,
            test=d,
        )
        for d in (0.5, 0.25)
        for t in (1, 2)
    ]
    (sweep,) = sweeps(series_of(_study(runs)))
    assert [choose(sweep, d, "accuracy").test.mean for d in (0.5, 0.25)] == [0.5, 0.25]
    mixed = [*runs[:2], *(make_run({1.0: 0.9, 0.5: 0.8}, until=d) for d in (0.5, 0.4))]
    labels = [one.label for one in series_of(_study(mixed))]
    assert labels[0] == "lr-rewinding:1ep, one-shot" and labels[2] == "lr-rewinding, rate 0.2, until 0.5"


def test_a_verdict_gives_values_differences_reach_and_what_is_missing(make_run):
    runs = [
        make_run({1.0: 0.90 + s / 100, 0.5: v + s / 100}, technique=name, seed=s)
        for name, v in (("fine-tuning", 0.8), ("lr-rewinding", 0.901))
        for s in (0, 1, 2)
    ]
    runs[0]["rounds"][-1]["metrics"]["accuracy"] += 0.003
    says = verdict(_study([*runs, {**make_run({}), "status": "failed"}]))
    assert says[0].startswith(
        "At density 0.5 (2x) the validation accuracy (mean of 3 seeds, 95 % interval) is lr-rewinding 0.911 ("
    )
    assert says[1].startswith("lr-rewinding is better than fine-tuning: +0.1 accuracy (95 % interval")
    assert "fine-tuning at no density; lr-rewinding down to 0.5 (2x)" in says[2]
    assert says[3].startswith("No dense network trained for as many epochs")
    assert says[4] == "1 of 7 runs failed and are left out."


def test_labels_leave_out_what_most_series_have_in_common(make_run):
    runs = [
        make_run({1.0: 0.9, 0.5: 0.8}, technique=t, criterion="magnitude", epochs=10) for t in ("a", "b", "c")
    ]
    runs += [make_run({1.0: 0.9}, technique="a", criterion="random", epochs=10)]
    runs += [make_run({1.0: 0.9}, technique="a", criterion="magnitude", epochs=20)]
    assert [one.label for one in series_of(_study(runs))] == ["a", "b", "c", "a, random", "a, epochs 20"]


def test_more_than_four_series_are_compared_with_learning_rate_rewinding(make_run):
    names = ("fine-tuning", "x", "lr-rewinding:5ep", "y", "z")
    runs = [
        make_run({1.0: 0.9, 0.5: 0.8 + s / 100}, technique=name, seed=s) for name in names for s in (0, 1)
    ]
    says = [sentence for sentence in verdict(_study(runs)) if " are equal in all" in sentence]
    assert len(says) == 4 and all("lr-rewinding:5ep" in sentence for sentence in says)
    assert sum("fine-tuning" in sentence for sentence in verdict(_study(runs), baseline="x")) > 0


def test_only_what_may_be_compared_is(make_run):
    runs = [
        make_run(
            {1.0: 0.9, 0.5: v + s / 100},
            technique=t,
            seed=s,
            pattern=p,
            task="toy",
            task_options={"model": m, "width": 4},
        )
        for m in ("mlp", "resnet")
        for p in ("weight", "channel")
        for t, v in (("a", 0.7), ("b", 0.8))
        for s in (0, 1, 2)
    ]
    control = make_run(
        {1.0: 0.95}, rate=0, task="toy", task_options={"model": "mlp", "width": 4}, pattern="weight"
    )
    parts = comparable(_study([*runs, control]))
    assert [name for name, _ in parts] == ["mlp, weight", "mlp, channel", "resnet, weight", "resnet, channel"]
    assert [len(part["runs"]) for _, part in parts] == [7, 7, 6, 6]
    says = verdict(_study([*runs, control]))
    assert sum(sentence.startswith("mlp, channel: ") for sentence in says) == 4
    assert not any("resnet" in sentence and "mlp" in sentence for sentence in says)
    assert comparable(_study(runs[:6]))[0][0] == ""
    assert [one.label for one in series_of(_study(runs))][:2] == ["a, weight, mlp", "b, weight, mlp"]


def test_a_verdict_over_many_series_names_the_best_and_the_last(make_run):
    runs = [
        make_run({1.0: 0.9, 0.5: 0.5 + k / 100 + s / 1000}, technique=f"t{k:02d}", seed=s)
        for k in range(20)
        for s in (0, 1)
    ]
    first = verdict(_study(runs))[0]
    assert "t19 0.69" in first and "t15" in first and "t14" not in first
    assert "less good for 15 more, down to 0.50" in first and first.endswith("for t00.")


def test_a_verdict_over_several_retraining_times_takes_each_technique_with_its_best(make_run):
    # a: best at t = 2, b: best at t = 3
    value = {("a", 1): 0.5, ("a", 2): 0.8, ("a", 3): 0.7, ("b", 1): 0.5, ("b", 2): 0.6, ("b", 3): 0.9}
    runs = [
        make_run({1.0: 0.9, 0.5: v + s / 1000}, technique=f"{name}:{t}ep", seed=s, t=t)
        for (name, t), v in value.items()
        for s in (0, 1, 2)
    ]
    says = verdict(_study(runs))
    assert says[0].startswith("Of several retraining times") and "(a t = 2, b t = 3)" in says[0]
    assert says[1].startswith("At density 0.5") and "b:3ep 0.901" in says[1] and "a:2ep 0.801" in says[1]
    assert not any("1ep" in sentence or "a:3ep" in sentence for sentence in says)
    assert (
        sum("a:2ep" in sentence and "b:3ep" in sentence for sentence in says) == 3
    )  # values, one comparison, how far


def test_a_verdict_gives_the_controls_their_place(make_run):
    control = [make_run({1.0: 0.90}, seed=s, rate=0, extra=(0.93, 0.94)) for s in (0, 1)]
    pruned = [make_run({1.0: 0.90, 0.5: 0.92}, seed=s) for s in (0, 1)]
    says = verdict(_study([*pruned, *control]))
    assert says[-1].startswith("Control dense, cyclic: after 60 epochs in all")
    assert "0.940" in says[-1]
    assert verdict(_study([])) == []


def _study(runs):
    return {"metric": {"name": "accuracy", "higher_is_better": True}, "task": {"name": "toy"}, "runs": runs}
