"""Widths that meet a target: the dynamic program, the search over coupled costs, tables of times, and the whole under a
made-up clock."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import rewound
from rewound.compaction.coupling import couple
from rewound.compaction.operators import operators_of
from rewound.measure import cost
from rewound.measure.latency import Ratio, Timing
from rewound.widths.knapsack import least_loss
from rewound.widths.rungs import losses, lost_shares, widths_allowed
from rewound.widths.search import Problem, choose
from rewound.widths.speedup import meet
from rewound.widths.table import Table, levels

# -- the dynamic program ---------------------------------------------------------------------------------

numbers = st.floats(-4, 16, allow_nan=False).map(lambda x: round(x, 2))
tables = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=4)


def by_hand(costs, lost, budget):
    """Try every choice."""
    able = [
        (sum(x[i] for x, i in zip(lost, pick)), sum(c[i] for c, i in zip(costs, pick)))
        for pick in itertools.product(*(range(len(c)) for c in costs))
        if sum(c[i] for c, i in zip(costs, pick)) <= budget + 1e-9
    ]
    return min(able, default=None)


@settings(max_examples=300, deadline=None)
@given(tables, st.floats(-10, 50).map(lambda x: round(x, 2) + 0.005))
def test_the_dynamic_program_finds_the_least_loss(rows, budget):
    costs = [np.array([c for c, _ in row]) for row in rows]
    lost = [np.array([x for _, x in row]) for row in rows]
    best, picked = by_hand(costs, lost, budget), least_loss(costs, lost, budget)
    assert (picked is None) == (best is None)
    if picked is not None:
        assert sum(c[i] for c, i in zip(costs, picked)) <= budget + 1e-9
        assert sum(x[i] for x, i in zip(lost, picked)) == pytest.approx(best[0])


def test_of_equal_losses_the_cheaper_choice():
    costs, lost = [np.array([3.0, 1.0, 2.0])] * 2, [np.array([0.0, 0.0, 0.0])] * 2
    assert least_loss(costs, lost, 6.0) == [1, 1]


def test_a_thinned_front_still_fits_and_loses_little_more():
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(12))[::-1] for _ in range(12)]
    lost = [np.arange(12) ** 2 * rng.random() for _ in range(12)]
    exact, thin = (least_loss(costs, lost, 5.0, cap) for cap in (10**6, 2000))
    assert sum(c[i] for c, i in zip(costs, thin)) <= 5.0 + 1e-9
    of = [sum(x[i] for x, i in zip(lost, pick)) for pick in (exact, thin)]
    assert of[0] <= of[1] <= of[0] * 1.02
    tight = sum(float(c.min()) for c in costs)
    assert least_loss(costs, lost, tight, 50) is not None  # the cheapest of all is never thinned away


# -- coupled costs ---------------------------------------------------------------------------------------


def chain(seed, groups=4, rungs=6, separable=False):
    """A chain of layers, each of which costs what it reads times what it writes."""
    rng = np.random.default_rng(seed)
    widths = [np.arange(1, rungs + 1) * rng.integers(2, 9) for _ in range(groups)]
    lost = [rng.random() * (1 - w / w[-1]) ** 2 / np.maximum(w / w[-1], 0.05) for w in widths]
    own, pair = rng.random(groups) * 3, rng.random(groups - 1) * (0 if separable else 1)

    def cost_at(w):
        return w @ own + (w[:, 1:] * w[:, :-1]) @ pair

    return Problem(widths, lost, cost_at)


def every(problem):
    return np.array(list(itertools.product(*(range(len(w)) for w in problem.widths))))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_costs_that_add_up_are_solved_exactly(share):
    for seed in range(10):
        problem = chain(seed, separable=True)
        choices = every(problem)
        costs = problem.costs(choices)
        budget = share * costs.max()
        if budget < costs.min():
            continue
        best = min(problem.loss(c) for c in choices[costs <= budget])
        found = choose(problem, budget)
        assert problem.costs(found[None])[0] <= budget
        assert problem.loss(found) == pytest.approx(best)


def test_coupled_costs_are_solved_almost_exactly():
    """Against every choice there is: never over the budget, mostly the best, never far from it."""
    ratios = []
    for seed in range(30):
        problem = chain(seed)
        choices = every(problem)
        costs = problem.costs(choices)
        for share in (0.2, 0.5, 0.8):
            budget = share * costs.max()
            able = costs <= budget
            found = choose(problem, budget)
            assert (found is None) == (not able.any())
            if found is not None:
                assert problem.costs(found[None])[0] <= budget
                ratios.append(problem.loss(found) / min(problem.loss(c) for c in choices[able]))
    assert len(ratios) > 60
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.8
    assert max(ratios) < 1.25


def test_what_fits_whole_stays_whole_and_what_never_fits_is_none():
    problem = chain(0)
    assert choose(problem, 1e9).tolist() == problem.widest.tolist()
    assert choose(problem, 0.0) is None


# -- widths and losses -----------------------------------------------------------------------------------


def test_widths_have_round_steps_and_both_ends():
    assert widths_allowed(16, 16, 1, 1, 64).tolist() == list(range(1, 17))
    assert widths_allowed(100, 90, 5, 1, 16).tolist() == [5, *range(8, 90, 8), 90]
    assert widths_allowed(64, 64, 4, 16, 64).tolist() == [16, 32, 48, 64]
    assert widths_allowed(10, 10, 1, 8, 64).tolist() == [8, 10]  # the whole group is always allowed


def test_the_share_lost_is_that_of_the_units_that_go():
    scores = torch.tensor([3.0, 1.0, 4.0, 8.0])
    assert lost_shares(scores, None).tolist() == [1.0, 0.5, 0.25, 0.0625, 0.0]
    alive = torch.tensor([True, True, True, False])
    assert lost_shares(scores, alive).tolist() == [1.0, 0.5, 0.125, 0.0]
    assert lost_shares(torch.zeros(4), None).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert lost_shares(torch.tensor([-1.0, 1.0]), None).tolist() == [1.0, 0.0, 0.0]
    assert lost_shares(torch.tensor([math.inf, 1.0]), None)[1] < 0.2
    with pytest.raises(ValueError, match="1 of 2 scores of units are NaN"):
        lost_shares(torch.tensor([math.nan, 1.0]), None)


def test_losses_grow_ever_faster():
    lost = {"a": np.linspace(1, 0, 11)}
    found = losses({"a": np.arange(1, 11)}, lost, {"a": 3.0})["a"]
    assert found[-1] == 0
    steps = -np.diff(found)
    assert (steps > 0).all()
    assert (np.diff(steps) < 0).all()
    assert found[4] == pytest.approx(3 * 0.5**2 / 0.5)


# -- tables of times -------------------------------------------------------------------------------------


class Clock:
    """Tells the times of a made-up machine instead of measuring.

    An operator alone takes less than in the network (``inside``), on a convolution as its channels rounded up to a multiple
    of eight, and each call of the network costs ``overhead`` besides.
    """

    def __init__(self, overhead=2e-4, inside=1.4, noise=0.0):
        self.known, self.overhead, self.inside, self.noise = {}, overhead, inside, noise
        self.operators = self.networks = 0
        self.random = np.random.default_rng(0)

    def operations(self, operations, progress=None):
        self.operators += len(operations)
        return [self.one(op.operator.name, op.shapes) for op in operations]

    def models(self, models, example):
        self.networks += len(models)
        return [self.timing(model, example) for model in models]

    def timing(self, model, example):
        seconds = self.network(model, example)
        return Timing(tuple(seconds * (1 + self.noise * self.random.standard_normal(9))), "made up", 1)

    def network(self, model, example):
        called = []

        def note(module, args, result):
            if isinstance(module, nn.Conv2d):
                called.append(self.one("aten.conv2d.default", [args[0].shape, module.weight.shape]))
            if isinstance(module, nn.Linear):
                called.append(self.one("aten.linear.default", [args[0].shape, module.weight.shape]))

        model = copy.deepcopy(model).eval()
        for module in model.modules():
            module.register_forward_hook(note)
        with torch.no_grad():
            model(example)
        return self.overhead + self.inside * sum(called)

    def one(self, name, shapes):
        if "conv2d" in name:
            x, w = shapes[:2]
            up = [8 * math.ceil(n / 8) for n in w[:2]]
            return 1e-6 + 1e-10 * up[0] * up[1] * math.prod(w[2:]) * math.prod(x[2:]) * x[0]
        if "linear" in name:
            return 1e-6 + 1e-10 * math.prod(shapes[0][:-1]) * math.prod(shapes[1])
        return 0.0


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.ModuleList(nn.Conv2d(width, 2 * width, 3, padding=1) for _ in range(3))
        self.outer = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(width, 3 * width, 1)
        self.fc = nn.Linear(3 * width, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        for inner, outer in zip(self.inner, self.outer):
            x = (x + outer(inner(x).relu())).relu()
        return self.fc(self.head(x).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Residual(16).eval()


X = torch.ones(1, 3, 12, 12)


def test_a_table_gives_back_what_was_measured_and_lines_between():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)
    ).eval()
    coupling = couple(model, X)

    class Linear(Clock):
        def one(self, name, shapes):  # linear in the channels read and in those written
            return 1.0 + math.prod(shapes[1][:2]) if "conv2d" in name else float(shapes[0][1])

    clock, table = Linear(), Table(*operators_of(coupling))
    table.measure(clock, np.array([1.0, 1.0]))
    for widths in ([32, 32], [1, 1], [8, 20], [5, 31]):
        a, b = widths
        expected = (1 + 3 * a) + (1 + a * b) + (1 + 4 * b) + a + b
        assert table.seconds([widths])[0] == pytest.approx(expected)
        assert table.each([widths])[0].sum() == pytest.approx(expected)
    before = clock.operators
    again = Table(*operators_of(coupling))
    again.measure(clock, np.array([1.0, 1.0]))
    assert clock.operators == before  # the timer remembers
    assert again.seconds([[7, 9]]) == table.seconds([[7, 9]])


def test_operators_that_are_alike_are_measured_once(net):
    clock, table = Clock(), Table(*operators_of(couple(net, X)))
    table.measure(clock, np.ones(table.extents.sizes.shape))
    keys = {op.key for op in table.operators if "conv2d" in op.name}
    assert len(keys) == 4 < sum("conv2d" in op.name for op in table.operators)
    whole = table.extents.sizes
    assert table.seconds(whole)[0] == pytest.approx((clock.network(net, X) - clock.overhead) / clock.inside)


def test_an_operator_that_cannot_be_called_counts_by_what_it_reads():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()

    class Refusing(Clock):
        def one(self, name, shapes):
            if "relu" in name:
                return 16.0 if shapes[0][1] == 16 else math.nan
            return math.nan

    table = Table(*operators_of(couple(model, X)))
    table.measure(Refusing(), np.array([1.0]))
    assert table.seconds([[16], [8], [4]]).tolist() == pytest.approx([16, 8, 4])


def test_levels_are_whole_numbers_of_units_with_both_ends():
    for units in (1, 2, 3, 7, 16, 33, 64, 768):
        for least in (0.0, 0.05, 0.5, 1.0):
            counts = levels(units, least, 6) * units
            assert len(counts) <= 6
            assert np.allclose(counts, np.round(counts))
            assert counts[-1] == units
            assert counts[0] == max(1, math.ceil(least * units - 1e-9))
            assert (np.diff(counts) > 0).all()


# -- meeting a speed-up ----------------------------------------------------------------------------------


def ladder(true, rungs=200):
    """One group of ``rungs`` widths whose table time is its width, and true time any function of it."""
    widths = [np.arange(1, rungs + 1)]
    problem = Problem(widths, [np.arange(rungs, 0, -1.0) ** 2], lambda w: w[:, 0])
    calls = []

    def measure(choice, again):
        calls.append((int(choice[0]) + 1, again))
        speed = true(rungs) / true(int(choice[0]) + 1)
        return Ratio(speed, (speed, speed))

    return problem, measure, calls


@pytest.mark.parametrize(
    "true",
    [
        lambda w: w,
        lambda w: 0.3 * w + 40,
        lambda w: w**1.7,
        lambda w: 8 * math.ceil(w / 8) + 5,
        lambda w: 60 + w**2 / 150,
    ],
    ids=["the same", "slower part", "steeper", "steps", "curved"],
)
@pytest.mark.parametrize("asked", [1.2, 1.5, 2.0])
def test_a_speedup_is_met_whatever_the_table_does_not_know(true, asked):
    problem, measure, calls = ladder(true)
    found, tries = meet(asked, problem, 200.0, 1.3 * true(200), measure, 0.05)
    assert found.speedup.median == pytest.approx(asked, rel=0.05)
    assert len(tries) <= 7
    assert calls[-1][1], "the network that is returned was measured twice"


def test_a_speedup_out_of_reach_says_the_largest_there_is():
    problem, measure, _ = ladder(lambda w: w + 100)
    with pytest.raises(
        ValueError, match=r"4x faster cannot be reached.* measured 2\.97x .*the cost of calls"
    ):
        meet(4.0, problem, 200.0, 300.0, measure, 0.05)


def test_where_steps_are_coarse_the_nearest_is_returned():
    problem, measure, _ = ladder(lambda w: 100 if w > 50 else 30)
    found, tries = meet(2.0, problem, 200.0, 100.0, measure, 0.05)
    assert found.speedup.median in (1.0, 100 / 30)
    assert len(tries) <= 10
    assert len({t.choice.tobytes() for t in tries}) == len(tries), "no network is measured for nothing"


def test_a_network_that_is_fast_enough_already_stays():
    problem, measure, _ = ladder(lambda w: w)
    found, _ = meet(
        2.0,
        problem,
        800.0,
        800.0,
        lambda choice, again: Ratio(4 * measure(choice, again).median, (0, 0)),
        0.05,
    )
    assert found.choice.tolist() == [199]


# -- the whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1.5, 2.5])
def test_the_network_that_comes_out_is_as_fast_as_asked(net, asked):
    clock = Clock()
    goal = rewound.for_speedup(asked, timer=clock)
    mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    small = rewound.compact(net, mask, X)
    met = clock.network(net, X) / clock.network(small, X)
    assert met == pytest.approx(asked, rel=0.05)
    assert goal.widths.met == pytest.approx(met)
    assert goal.widths.kept == {name: kept for name, (kept, _) in mask.units.items()}
    assert goal.widths.parameters == (cost.parameters(net), cost.parameters(small))
    assert goal.widths.multiply_adds == (cost.flops(net, X) // 2, cost.flops(small, X) // 2)


def test_a_noisy_clock_is_met_too(net):
    clock = Clock(noise=0.1)
    goal = rewound.for_speedup(2.0, timer=clock)
    mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    small = rewound.compact(net, mask, X)
    assert clock.network(net, X) / clock.network(small, X) == pytest.approx(2.0, rel=0.15)


def test_time_is_what_counts_not_multiply_adds(net):
    """Where only the head takes long, only the head pays."""

    class Head(Clock):
        def one(self, name, shapes):
            slow = "conv2d" in name and tuple(shapes[1][2:]) == (1, 1)
            return 1e-3 * shapes[1][0] if slow else 1e-7 * shapes[1][0] if "conv2d" in name else 0.0

    goal = rewound.for_speedup(2.0, timer=Head())
    rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    kept = {width.name: width.kept / width.size for width in goal.widths.groups}
    assert kept.pop("head") < 0.6
    assert min(kept.values()) > 0.9


def test_an_importance_that_lies_in_few_units_lets_the_others_go(net):
    with torch.no_grad():
        net.inner[1].weight[4:] *= 1e-3
    goal = rewound.for_multiply_adds(0.8)
    rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    kept = {width.name: width.kept / width.size for width in goal.widths.groups}
    assert min(kept, key=kept.get) == "inner.1"


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_shares_of_multiply_adds_and_parameters_are_met_exactly(net, share):
    for goal, count in (
        (rewound.for_multiply_adds(share), lambda m: cost.flops(m, X) // 2),
        (rewound.for_parameters(share), cost.parameters),
    ):
        mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
        small = rewound.compact(net, mask, X)
        assert 0.95 * share < count(small) / count(net) <= share
        assert goal.widths.met == count(small) / count(net)
        assert goal.widths.speedup is None


def test_multiples_floors_and_earlier_masks_hold(net):
    first = rewound.prune(net, 0.8, pattern="channel", example=X)
    for goal in (rewound.for_speedup(2.0, timer=Clock(), tolerance=0.3), rewound.for_multiply_adds(0.4)):
        mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X, mask=first)
        assert mask <= first
        mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X, multiple=4, floor=0.3)
        for kept, size in mask.units.values():
            assert kept % 4 == 0
            assert kept >= 0.3 * size
    again = rewound.prune(
        net, None, pattern="channel", allocation=rewound.for_multiply_adds(0.99), example=X, mask=first
    )
    assert again == first, "what an earlier mask has brought counts towards the target"


def test_other_batches_and_other_examples_are_what_is_timed(net):
    clock = Clock()
    goal = rewound.for_speedup(1.5, timer=clock, batch=4)
    mask = rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    four = X.expand(4, -1, -1, -1)
    small = rewound.compact(net, mask, X)
    assert clock.network(net, four) / clock.network(small, four) == pytest.approx(1.5, rel=0.05)
    assert "batch 4" in str(goal.widths)
    goal = rewound.for_speedup(1.5, timer=Clock(), example=torch.ones(2, 3, 8, 8))
    rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    assert "batch 2" in str(goal.widths)


def test_sensitivity_spares_what_it_names(net):
    def kept(sensitivity):
        goal = rewound.for_multiply_adds(0.5, sensitivity=sensitivity)
        rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
        return goal.widths.kept

    assert kept({"inner.0": 50.0})["inner.0"] > kept({})["inner.0"] > kept({"inner.*": 0.01})["inner.0"]
    with pytest.raises(ValueError, match=r"unknown group in 'sensitivity' 'inner\.7'"):
        kept({"inner.7": 1.0})
    with pytest.raises(ValueError, match=r"sensitivity of 'inner\.0' must be one number from 0"):
        kept({"inner.0": -1.0})


def test_the_report_says_what_was_asked_and_what_was_met(net):
    goal = rewound.for_speedup(2.0, timer=Clock())
    with pytest.raises(ValueError, match=r"for_speedup\(2\) has chosen no widths yet"):
        goal.widths  # noqa: B018
    rewound.prune(net, None, pattern="channel", allocation=goal, example=X)
    text = str(goal.widths).splitlines()
    assert text[0].startswith("asked: 2x faster; met: ")
    assert "ms before" not in text[1]
    assert text[1].startswith("measured: ")
    assert "made up, 1 thread, batch 1" in text[1]
    assert "multiply-adds" in text[2]
    assert "parameters" in text[3]
    assert len(text) == 6 + len(goal.widths.groups)
    timed = goal.widths.groups
    assert sum(w.before for w in timed) > sum(w.after for w in timed) > 0


def test_heads_and_hidden_units_are_planned_together():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.ones(2, 6, 32)
    goal = rewound.for_multiply_adds(0.6)
    mask = rewound.prune(layer, None, pattern="unit", allocation=goal, example=x)
    assert {width.kind for width in goal.widths.groups} == {"head", "hidden unit"}
    assert cost.flops(rewound.compact(layer, mask, x), x) <= 0.6 * cost.flops(layer, x)


# -- refusals --------------------------------------------------------------------------------------------


def test_what_cannot_be_reached_is_refused_with_what_can(net):
    with pytest.raises(ValueError, match=r"100x faster cannot be reached.*measured \d+\.\d+x"):
        rewound.prune(
            net, None, pattern="channel", allocation=rewound.for_speedup(100, timer=Clock()), example=X
        )
    with pytest.raises(
        ValueError, match=r"0.001 of the multiply-adds cannot be reached.*remain\. Ask for at least that"
    ):
        rewound.prune(net, None, pattern="channel", allocation=rewound.for_multiply_adds(0.001), example=X)


def test_a_target_goes_with_units_and_without_a_density(net):
    goal = rewound.for_multiply_adds(0.5)
    with pytest.raises(
        ValueError, match=r"for_multiply_adds\(0\.5\) says itself how much is kept: pass density=None"
    ):
        rewound.prune(net, 0.5, pattern="channel", allocation=goal, example=X)
    with pytest.raises(
        ValueError, match=r"for_multiply_adds\(0\.5\) runs the network: pass example=one input"
    ):
        rewound.prune(net, None, allocation=goal)
    with pytest.raises(
        ValueError, match=r"for_parameters\(0\.5\) plans the widths of units, .* prunes weights"
    ):
        rewound.prune(net, None, allocation=rewound.for_parameters(0.5), example=X)
    structure = rewound.find_units(net, X)
    assert rewound.prune(net, None, pattern=structure, allocation=goal).units_kept < 200  # needs no example
    with pytest.raises(ValueError, match=r"for_speedup\(2\) runs the network: pass example=one input"):
        rewound.prune(net, None, pattern=structure, allocation=rewound.for_speedup(2.0, timer=Clock()))


def test_a_run_which_prunes_by_density_refuses_a_target_before_it_trains(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"for_multiply_adds\(0\.5\) says itself how much is kept, and a run"
    ):
        rewound.Run(
            net, optimizer, epochs=1, technique="fine-tuning", pattern="channel", example=X,
            allocation=rewound.for_multiply_adds(0.5),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rewound.for_speedup(1.0), "takes a number above 1"),
        (lambda: rewound.for_speedup(True), "takes a number above 1"),
        (lambda: rewound.for_speedup(float("inf")), "takes a number above 1"),
        (lambda: rewound.for_speedup(2.0, batch=0), "'batch' must be a whole number from 1"),
        (lambda: rewound.for_speedup(2.0, tolerance=0), "'tolerance' must be a share"),
        (lambda: rewound.for_speedup(2.0, threads=0), "'threads' must be a whole number from 1"),
        (lambda: rewound.for_speedup(2.0, clock="sun"), "'clock' must be 'cpu', 'wall' or None"),
        (lambda: rewound.for_speedup(2.0, timer=Clock(), threads=1), "a 'timer' has its own threads"),
        (lambda: rewound.for_multiply_adds(0), r"in \(0, 1\] \(got 0\)"),
        (lambda: rewound.for_parameters(1.5), r"in \(0, 1\] \(got 1.5\)"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_missed_is_said(net):
    class Coarse(Clock):
        def network(self, model, example):
            return 1.0 if cost.parameters(model) > 20_000 else 0.2

    with pytest.warns(
        UserWarning, match=r"asked 2x faster, met .*: nearer than that none of \d+ networks came"
    ) as caught:
        rewound.prune(
            net, None, pattern="channel", allocation=rewound.for_speedup(2.0, timer=Coarse()), example=X
        )
    assert caught[0].filename == __file__


def test_the_model_is_left_as_it_was(net):
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewound.prune(
            net, None, pattern="channel", allocation=rewound.for_speedup(1.5, timer=Clock()), example=X
        )
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert F.relu(net(torch.ones(2, 3, 12, 12))).shape == (2, 5)
