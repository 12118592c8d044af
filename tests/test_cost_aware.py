"""Weights and blocks weighed against the multiply-adds, or the milliseconds, that they cost."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rewound
from rewound.criteria import charged, magnitude
from rewound.measure.cost import flops, multiply_adds_each
from rewound.measure.latency import Timing
from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet
from rewound.widths.densities import Densities
from rewound.widths.engine import Compiled, LayerTimes, as_layer_timer
from rewound.widths.multipliers import Ranked, at_density, multiply_adds, within

IMAGE = torch.zeros(1, 1, 5, 5)


def by_hand():
    """A convolution of 3 weights, 16 positions each; a linear layer of 6 weights, of 1 each, in float64."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False)
    ).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[:, 0, 0, 0] = torch.tensor([8.0, 4.0, -2.0])
        net[3].weight.copy_(torch.tensor([[0.75, -1.5, 0.25], [1.0, 0.5, 0.125]]))
    return net


def share(net, mask, example):
    return flops(net, example, mask) / flops(net, example)


def survivors(net, mask):
    return {name: net.get_parameter(name)[kept].abs().tolist() for name, kept in mask.items()}


# -- what one weight costs -----------------------------------------------------------------------------------


def test_a_weight_costs_the_positions_it_works_at():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)
    )
    example = torch.zeros(3, 2, 8, 8)
    each = multiply_adds_each(net, example)
    assert each == {"0.weight": 3 * 16, "3.weight": 3}
    assert 2 * sum(c * net.get_parameter(n).numel() for n, c in each.items()) == flops(net, example)
    tokens = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    assert multiply_adds_each(tokens, torch.zeros(2, 6, dtype=torch.long)) == {"1.weight": 12}


# -- allocation "cost" ---------------------------------------------------------------------------------------


def test_cost_by_hand():
    """score^2 / cost: 4, 1, .25 and zeros of the convolution; 2.25, 1, .5625, .25, .0625, 1/64 of the linear layer."""
    net = by_hand()
    expected = {
        1: ([8.0], []),
        2: ([8.0], [1.5]),
        3: ([8.0, 4.0], [1.5]),  # the tie of 1 falls to the earlier tensor
        4: ([8.0, 4.0], [1.5, 1.0]),
        5: ([8.0, 4.0], [0.75, 1.5, 1.0]),
        6: ([8.0, 4.0, 2.0], [0.75, 1.5, 1.0]),
    }
    for kept, (conv, linear) in expected.items():
        mask = rewound.prune(net, kept / 18, allocation="cost", example=IMAGE.double(), floor=0.0)
        assert survivors(net, mask) == {"0.weight": conv, "3.weight": linear}
    assert survivors(net, rewound.prune(net, 4 / 18))["0.weight"] == [8.0, 4.0, 2.0], "global pays more"


def test_cost_needs_an_example_and_single_weights():
    with pytest.raises(ValueError, match="multiply-adds are counted by running the network once: pass exam"):
        rewound.prune(by_hand(), 0.5, allocation="cost")
    with pytest.raises(ValueError, match="'cost' says what one weight is worth, and channels"):
        rewound.prune(
            cifar_resnet(8, width=4),
            0.5,
            allocation="cost",
            pattern="channel",
            example=torch.zeros(1, 3, 8, 8),
        )


def test_what_causes_no_multiply_adds_counts_as_the_cheapest():
    net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight.fill_(2.0)
    scope = rewound.find_scope(net, embeddings=True)
    example = torch.zeros(1, 3, dtype=torch.long)
    mask = rewound.prune(net, 0.5, allocation="cost", scope=scope, example=example, floor=0.0)
    assert mask.counts == {"0.weight": 0, "1.weight": 16}


def test_scores_below_zero_go_the_sooner_the_costlier():
    net = by_hand()
    same = lambda evidence: {n: torch.full(s, -1.0) for n, s in evidence.shapes.items()}  # noqa: E731
    mask = rewound.prune(net, 6 / 18, criterion=same, allocation="cost", example=IMAGE.double(), floor=0.0)
    assert mask.counts == {"0.weight": 0, "3.weight": 6}


def test_no_layer_is_emptied_unless_asked():
    torch.manual_seed(0)
    net, example = cifar_resnet(20), torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        net.layer1[0].conv1.weight *= 1e-4
    name = "layer1.0.conv1.weight"
    for goal in ("cost", rewound.for_multiply_adds(0.05)):
        mask = rewound.prune(net, 0.1, allocation=goal, example=example)
        assert mask.counts[name] == math.ceil(0.01 * 2304)
        assert mask.kept == round(0.1 * mask.size)
        assert rewound.prune(net, 0.1, allocation=goal, example=example, floor=0.0).counts[name] == 0
    assert rewound.prune(net, 0.02, allocation="cost", example=example).counts[name] == math.ceil(
        0.005 * 2304
    )


@pytest.mark.parametrize("pattern", ["weight", "2x1", "4x1"])
def test_resnet_20_at_nine_zeros_in_ten(pattern):
    """One global threshold cuts less than 5 x of the multiply-adds; weighed against them, more than 12 x."""
    torch.manual_seed(0)
    net, example = cifar_resnet(20), torch.zeros(1, 3, 32, 32)
    by_threshold = rewound.prune(net, 0.1, pattern=pattern)
    by_cost = rewound.prune(net, 0.1, pattern=pattern, allocation="cost", example=example)
    assert by_threshold.kept == pytest.approx(by_cost.kept, rel=0.005)
    assert by_threshold.units_kept == by_cost.units_kept
    assert share(net, by_threshold, example) > 0.18
    assert share(net, by_cost, example) < 0.06


@pytest.mark.slow
def test_resnet_50_at_nine_zeros_in_ten():
    torch.manual_seed(0)
    net, example = imagenet_resnet(50), torch.zeros(1, 3, 224, 224)
    found = {a: rewound.prune(net, 0.1, allocation=a, example=example) for a in ("global", "uniform", "cost")}
    assert len({mask.kept for mask in found.values()}) == 1
    shares = {a: share(net, mask, example) for a, mask in found.items()}
    assert shares["global"] > 0.2
    assert shares["uniform"] == pytest.approx(0.1, abs=1e-4)
    assert shares["cost"] < 0.06
    goal = rewound.for_multiply_adds(0.1)
    mask = rewound.prune(net, 0.1, allocation=goal, example=example)
    assert mask.kept == found["cost"].kept
    assert 0.0999 < share(net, mask, example) <= 0.1


# -- a number of multiply-adds ---------------------------------------------------------------------------------


def test_multiply_adds_by_hand():
    """Of 12 * 16 + 6 multiply-adds; in the order of score^2 / cost, as many as fit."""
    net = by_hand()
    for room, conv, linear in [
        (16, [8.0], []),
        (17, [8.0], [1.5]),
        (18, [8.0], [1.5]),  # the next in the order is the tie of 16, which does not fit
        (33, [8.0, 4.0], [1.5]),
        (34, [8.0, 4.0], [1.5, 1.0]),
        (36, [8.0, 4.0], [0.75, 1.5, 1.0]),
        (51, [8.0, 4.0, 2.0], [0.75, 1.5, 1.0]),
        (198, None, None),
    ]:
        goal = rewound.for_multiply_adds(room / 198)
        mask = rewound.prune(net, None, allocation=goal, example=IMAGE.double(), floor=0.0)
        if conv is None:
            assert mask.density == 1
        else:
            assert survivors(net, mask) == {"0.weight": conv, "3.weight": linear}
        assert goal.widths.multiply_adds == (198, flops(net, IMAGE.double(), mask) // 2)
        assert goal.widths.met <= room / 198


def test_a_density_and_multiply_adds_by_hand():
    """Four weights: what is lost least grows as multiply-adds are taken away."""
    net = by_hand()
    for room, conv, linear in [
        (49, [8.0, 4.0, 2.0], [1.5]),
        (34, [8.0, 4.0], [1.5, 1.0]),
        (19, [8.0], [0.75, 1.5, 1.0]),
        (4, [], [0.75, 1.5, 1.0, 0.5]),
    ]:
        goal = rewound.for_multiply_adds(room / 198)
        mask = rewound.prune(net, 4 / 18, allocation=goal, example=IMAGE.double(), floor=0.0)
        assert survivors(net, mask) == {"0.weight": conv, "3.weight": linear}
    with pytest.raises(
        ValueError, match=r"cannot be reached, with 4 weights kept: at the least 0\.0202 remain"
    ):
        rewound.prune(
            net, 4 / 18, allocation=rewound.for_multiply_adds(3 / 198), example=IMAGE.double(), floor=0.0
        )


def test_what_is_out_of_scope_counts_and_cannot_go():
    net = by_hand()
    with pytest.raises(ValueError, match=r"at the least 0\.97\d+ remain, 0\.9697 outside of the scope"):
        rewound.prune(
            net, None, scope=["3.*"], allocation=rewound.for_multiply_adds(0.5), example=IMAGE.double()
        )


scores = st.lists(st.integers(0, 6).map(lambda x: x / 2), max_size=4).map(sorted)
ranked = st.builds(
    lambda s, cost, dtype: Ranked(np.array(s, dtype=dtype), float(cost)),
    scores,
    st.sampled_from([1, 2, 4, 9]),
    st.sampled_from(["f4", "f8"]),
)
tensors = st.lists(ranked, min_size=1, max_size=3)


def lost(of, counts):
    return sum(float((t.scores[: len(t.scores) - n].astype(float) ** 2).sum()) for t, n in zip(of, counts))


@settings(max_examples=200, deadline=None)
@given(tensors, st.floats(0, 1), st.data())
def test_no_other_mask_of_as_few_multiply_adds_loses_less(of, part, data):
    """Against every mask there is."""
    whole = [len(t.scores) for t in of]
    room = part * multiply_adds(of, whole)
    every = list(itertools.product(*(range(n + 1) for n in whole)))
    found = within(of, room)
    used = multiply_adds(of, found)
    assert used <= room
    assert lost(of, found) <= min(lost(of, c) for c in every if multiply_adds(of, c) <= used) + 1e-9

    kept = data.draw(st.integers(0, sum(whole)))
    able = [c for c in every if sum(c) == kept and multiply_adds(of, c) <= room]
    found = at_density(of, kept, room)
    assert (found is None) == (not able)
    if found is not None:
        used = multiply_adds(of, found)
        assert sum(found) == kept
        assert used <= room
        assert lost(of, found) <= min(lost(of, c) for c in able if multiply_adds(of, c) <= used) + 1e-9


def test_the_tensors_own_floats_bound_the_count_exactly():
    t = Ranked(np.array([0.1, 0.2, 0.3], dtype=np.float32), 1.0)
    assert t.at_least(float(np.float32(0.2))) == 2
    assert t.at_least(math.nextafter(float(np.float32(0.2)), 1.0)) == 1
    assert t.at_least(1e300) == 0
    assert t.at_least(-math.inf) == 3


def test_equal_weights_fall_by_the_order_of_tensors_and_the_position():
    net = by_hand()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
    mask = rewound.prune(net, 8 / 18, allocation="cost", example=IMAGE.double(), floor=0.0)
    assert mask["3.weight"].all()
    assert mask["0.weight"].reshape(-1).tolist() == [True] * 2 + [False] * 10
    goal = rewound.for_multiply_adds((3 + 5 * 16) / 198)
    mask = rewound.prune(net, 8 / 18, allocation=goal, example=IMAGE.double(), floor=0.0)
    assert mask["0.weight"].reshape(-1).tolist() == [True] * 5 + [False] * 7
    assert mask["3.weight"].reshape(-1).tolist() == [True] * 3 + [False] * 3


def test_blocks_count_the_weights_that_they_hold():
    """Five output channels in blocks of two: the last block of every column holds one weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3))
    example = torch.zeros(2, 3, 9, 9)
    before = None
    for part in (0.6, 0.3, 0.15, 0.05):
        goal = rewound.for_multiply_adds(part)
        mask = rewound.prune(net, None, pattern="2x1", allocation=goal, example=example, mask=before)
        assert share(net, mask, example) <= part + 1e-12
        assert share(net, mask, example) > part - 2 * 49 * 2 / (flops(net, example) / 2)  # to one block
        assert goal.widths.multiply_adds[1] == flops(net, example, mask) // 2
        assert goal.widths.parameters[1] == sum(p.numel() for p in net.parameters()) - mask.size + mask.kept
        assert before is None or mask <= before
        before = mask


def test_sensitivity_spares_what_it_names_and_masks_nest():
    torch.manual_seed(0)
    net, example = cifar_resnet(8), torch.zeros(1, 3, 16, 16)

    def kept(sensitivity, mask=None, density=None):
        goal = rewound.for_multiply_adds(0.2, sensitivity=sensitivity)
        return rewound.prune(net, density, allocation=goal, example=example, mask=mask)

    name = "layer1.0.conv1.weight"
    assert kept({name: 9.0}).counts[name] > kept({}).counts[name] > kept({"layer1.*": 0.1}).counts[name]
    first = rewound.prune(net, 0.3, allocation="cost", example=example)
    assert kept({}, first) <= first
    assert kept({}, first, 0.1) <= first
    assert str(rewound.for_multiply_adds(0.1, sensitivity={name: 9.0})) != "for_multiply_adds(0.1)"


def test_nan_is_refused_and_infinity_stays():
    net = by_hand()
    with torch.no_grad():
        net[3].weight[0, 0] = math.inf
    mask = rewound.prune(net, None, allocation=rewound.for_multiply_adds(17 / 198), example=IMAGE.double())
    assert mask["3.weight"][0, 0]
    with torch.no_grad():
        net[3].weight[0, 0] = math.nan
    for allocation in ("cost", rewound.for_multiply_adds(0.1)):
        with pytest.raises(ValueError, match=r"1 of \d+ scores of '3\.weight' are NaN"):
            rewound.prune(net, 0.3, allocation=allocation, example=IMAGE.double())


# -- the criterion -----------------------------------------------------------------------------------------------


def test_charged_takes_off_what_the_weight_costs_for_one_example():
    net = by_hand().float()
    evidence = rewound.Evidence(net, example=torch.zeros(4, 1, 5, 5))
    found = charged(magnitude, flops=1e5)(evidence)
    assert found["0.weight"].reshape(-1)[0].item() == pytest.approx(8 - 1e5 * 2e-6 * 16)
    assert found["3.weight"][0, 0].item() == pytest.approx(0.75 - 1e5 * 2e-6)
    mask = rewound.prune(net, 4 / 18, criterion=charged(magnitude, flops=1e5), example=IMAGE)
    assert survivors(net, mask) == {"0.weight": [8.0, 4.0], "3.weight": [1.5, 1.0]}
    assert rewound.prune(net, 0.5, criterion=charged(magnitude, flops=0), example=IMAGE) == rewound.prune(
        net, 0.5
    )
    with pytest.raises(ValueError, match="pass example=one input to prune"):
        rewound.prune(net, 0.5, criterion=charged(magnitude, flops=1.0))
    with pytest.raises(ValueError, match="'flops' must be a number from 0"):
        charged(magnitude, flops=-1.0)
    with pytest.raises(TypeError, match="must be a function of Evidence"):
        charged("magnitude", flops=1.0)
    with pytest.raises(ValueError, match=r"taylor\(flops=\.\.\.\) has the option itself"):
        charged(rewound.criteria.taylor, flops=1.0)


# -- milliseconds --------------------------------------------------------------------------------------------------


class Made:
    """A made-up engine: a layer takes microseconds a[name] + b[name] * its density, all others together ``rest``."""

    def __init__(self, a, b, rest=0.0, noise=None):
        self.a, self.b, self.rest, self.noise, self.compiled = a, b, rest, noise, 0

    def layers(self, model, example):
        self.compiled += 1
        found = {n: float((model.get_parameter(n) != 0).double().mean()) for n in self.a}
        return {n: 1e-6 * (self.a[n] + self.b[n] * d) for n, d in found.items()}

    def models(self, models, example):
        times = [sum(self.layers(m, example).values()) + 1e-6 * self.rest for m in models]
        return [Timing((t, t, t), "made up", 1) for t in times]


def layered(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 30, bias=False), nn.Linear(30, 40, bias=False), nn.Linear(40, 10, bias=False)
    )


ROW = torch.zeros(1, 20)


@pytest.mark.parametrize(("times", "rest"), [(2.0, 0.0), (4.0, 0.0), (4.0, 8.0)])
def test_a_speedup_is_met_and_cheap_layers_stay_dense(times, rest):
    net = layered()
    a, b = (
        {"0.weight": 1.0, "1.weight": 1.0, "2.weight": 1.0},
        {"0.weight": 5.0, "1.weight": 90.0, "2.weight": 5.0},
    )
    goal = rewound.for_speedup(times, timer=Made(a, b, rest))
    mask = rewound.prune(net, None, allocation=goal, example=ROW)
    assert goal.widths.met == pytest.approx(times, rel=0.05)
    assert mask.densities["1.weight"] < min(mask.densities["0.weight"], mask.densities["2.weight"])
    widths = {w.name: w for w in goal.widths.groups}
    assert widths["1.weight"].kept == mask.counts["1.weight"]
    assert widths["1.weight"].before == pytest.approx(91e-6)
    assert widths["1.weight"].after == pytest.approx(1e-6 + 90e-6 * mask.densities["1.weight"], rel=0.02)
    assert "ms before" in str(goal.widths)
    blocks = rewound.prune(net, None, pattern="2x1", allocation=goal, example=ROW)
    assert blocks.units is not None
    assert goal.widths.met == pytest.approx(times, rel=0.05)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_densities_of_tiny_networks_are_the_best_there_are(part):
    """The dynamic program against every choice of densities."""
    for seed in range(5):
        net = layered(seed)
        rng = np.random.default_rng(seed)
        names = [name for name, _ in net.named_parameters()]
        timer = Made(*({n: float(x) for n, x in zip(names, rng.random(3) * scale)} for scale in (2, 50)))
        plans = []

        def see(plan, plans=plans):
            plans.append(plan)
            return [len(t.scores) for t in plan.tensors], None

        goal = rewound.for_speedup(2.0, timer=timer)
        goal._thin = see
        rewound.prune(net, None, allocation=goal, example=ROW)
        plan: Densities = plans[0]
        table = LayerTimes(plan, timer, ROW)
        table.measure()
        problem = plan.problem(8, table.seconds)
        choices = np.array(list(itertools.product(*(range(len(w)) for w in problem.widths))))
        costs = problem.costs(choices)
        budget = costs.min() + part * (costs.max() - costs.min())
        from rewound.widths.search import choose

        best = min(problem.loss(c) for c in choices[costs <= budget])
        found = choose(problem, budget)
        assert problem.costs(found[None])[0] <= budget * (1 + 1e-12)
        assert problem.loss(found) == pytest.approx(best)
        counts = plan.chosen(found)
        squares = [p.detach().double().abs().reshape(-1).sort().values.square() for p in net.parameters()]
        gone = sum(float(s[: len(s) - n].sum()) for s, n in zip(squares, counts))
        assert problem.loss(found) == pytest.approx(gone, rel=1e-5)


def test_one_compilation_a_rung_and_noise_makes_no_layer_slower_by_pruning():
    from rewound.widths.engine import LADDER

    class Noisy(Made):
        def layers(self, model, example):
            found = super().layers(model, example)
            return {n: s * (1.5 if self.compiled % 3 == 0 else 1.0) for n, s in found.items()}

    names = ["0.weight", "1.weight", "2.weight"]
    timer = Noisy(dict.fromkeys(names, 1.0), dict.fromkeys(names, 10.0))
    seen = []
    goal = rewound.for_speedup(2.0, timer=timer)
    goal._thin = lambda plan: (seen.append(plan), ([len(t.scores) for t in plan.tensors], None))[1]
    rewound.prune(layered(), None, allocation=goal, example=ROW)
    table = LayerTimes(seen[0], timer, ROW)
    table.measure()
    assert timer.compiled == len(LADDER)
    counts = np.linspace(1, 300, 50)[:, None] * np.array([1.0, 1.0, 1.0])
    assert (np.diff(table.each(counts), axis=0) >= 0).all()


def test_what_cannot_be_reached_or_timed_is_refused():
    net, names = layered(), ["0.weight", "1.weight", "2.weight"]
    timer = Made(dict.fromkeys(names, 9.0), dict.fromkeys(names, 1.0))
    with pytest.raises(ValueError, match="4x faster cannot be reached"):
        rewound.prune(net, None, allocation=rewound.for_speedup(4.0, timer=timer), example=ROW)
    goal = rewound.for_speedup(1.05, timer=timer)
    with pytest.raises(
        ValueError, match=r"for_speedup\(1\.05\) says itself how much is kept: pass density=None"
    ):
        rewound.prune(net, 0.5, allocation=goal, example=ROW)
    with pytest.raises(ValueError, match=r"for_speedup\(1\.05\) runs the network: pass example"):
        rewound.prune(net, None, allocation=goal)
    timer.layers = lambda model, example: {"other": 1.0}
    with pytest.raises(ValueError, match="no layer that was timed reads a weight in scope; timed: other"):
        rewound.prune(net, None, allocation=goal, example=ROW)
    with pytest.raises(ValueError, match=r"needs a method layers\(model, example\)"):
        as_layer_timer(object())
    stopwatch = rewound.measure.latency.Stopwatch(1, "cpu", 0.5)
    own = as_layer_timer(stopwatch)
    assert isinstance(own, Compiled)
    assert (own.threads, own.clock, own.seconds) == (1, "cpu", 0.5)


class Engine:
    """What ``runtime.compile`` returns, made up: as slow as its layers have weights."""

    def __init__(self, model, threads):
        self.layers = [
            SimpleNamespace(weight=n, milliseconds=1e-3 * float((p != 0).sum()))
            for n, p in model.named_parameters()
        ]
        self.layers.append(SimpleNamespace(weight=None, milliseconds=7.0))
        self.threads, self.calls = threads, 0

    def __call__(self, x):
        self.calls += 1
        return x

    def report(self):
        return self


def test_the_engine_is_asked_for_its_layers_and_compiled_engines_take_turns(monkeypatch):
    engines = []

    def compiled(model, example, *, threads):
        engines.append(Engine(model, threads))
        return engines[-1]

    monkeypatch.setattr("rewound.runtime.compile", compiled, raising=False)
    net, timer = layered(), Compiled(1, None, 0.01)
    with torch.no_grad():
        net[0].weight[:10] = 0.0
    found = timer.layers(net, ROW)
    assert found == pytest.approx({"0.weight": 400e-6, "1.weight": 1200e-6, "2.weight": 400e-6})
    times = timer.models([net, net], ROW)
    assert len(engines) == 3
    assert engines[1].calls > 7
    assert engines[2].calls > 7
    assert [(t.clock, t.threads, len(t.samples) >= 7) for t in times] == [("cpu", 1, True)] * 2
    assert Compiled(None, None, 0.01).models([net], ROW)[0].threads == 1
    assert Compiled(2, None, 0.01).models([net], ROW)[0].how == "wall-clock time, 2 threads"


# -- in a run, and in recipes ----------------------------------------------------------------------------------------


def run_of(allocation, until=0.1, rate=0.6, technique="lr-rewinding:1ep", **options):
    torch.manual_seed(0)
    net = cifar_resnet(8, width=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    options = {"example": torch.zeros(2, 3, 12, 12), **options}
    return net, optimizer, rewound.Run(
        net, optimizer, epochs=2, technique=technique, allocation=allocation, until=until, rate=rate, **options
    )  # fmt: skip


def go(net, optimizer, run):
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    masks = []
    for _ in run:
        if len(masks) < run.round:
            masks.append(run.mask)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return masks


@pytest.mark.parametrize("technique", ["lr-rewinding:1ep", "weight-rewinding:1ep"])
@pytest.mark.parametrize("pattern", ["weight", "2x1"])
@pytest.mark.parametrize("allocation", ["cost", "for_multiply_adds(0.06)"])
def test_rounds_are_exact_nested_and_record_their_multiply_adds(allocation, pattern, technique):
    net, optimizer, run = run_of(allocation, pattern=pattern, technique=technique)
    masks = go(net, optimizer, run)
    kept = [mask.kept if pattern == "weight" else mask.units_kept for mask in masks]
    assert kept == list(run.plan.kept)
    assert all(b <= a for a, b in zip(masks, masks[1:]))
    assert not any(p[~run.mask[n]].any() for n, p in net.named_parameters() if n in run.mask)
    shares = [r.multiply_adds_share for r in run.result.rounds]
    assert shares[0] == 1.0
    assert all(b < a for a, b in zip(shares, shares[1:]))
    for mask, found in zip(masks, shares[1:]):
        assert found == pytest.approx(share(net, mask, torch.zeros(2, 3, 12, 12)))
    if allocation == "cost":
        assert all(s < r.density for s, r in zip(shares[1:], run.result.rounds[1:]))
    else:
        power = math.log(0.06) / math.log(run.plan.densities[-1])
        for found, density in zip(shares[1:], run.plan.densities):
            assert found <= density**power + 1e-9
    assert "multiply-adds" in str(run.result)
    again = rewound.Round.from_dict(run.result.rounds[-1].to_dict())
    assert again == run.result.rounds[-1]


def test_a_run_tells_at_once_what_it_cannot_do():
    with pytest.raises(ValueError, match="allocation 'cost' counts multiply-adds: pass example"):
        run_of("cost", example=None)
    with pytest.raises(ValueError, match="is met at the density of the last round: give 'until' a density"):
        run_of(rewound.for_multiply_adds(0.1), until="3 rounds")
    with pytest.raises(ValueError, match="cannot be reached, with"):
        run_of(rewound.for_multiply_adds(0.001))
    with pytest.raises(
        ValueError, match=r"for_speedup\(2\) says itself how much is kept, .* train under rewound.guard"
    ):
        run_of(rewound.for_speedup(2.0))
    with pytest.raises(ValueError, match="'cost' is for single weights and blocks"):
        run_of("cost", pattern="channel")


def test_a_killed_run_goes_on(tmp_path):
    net, optimizer, run = run_of("for_multiply_adds(0.06)", folder=tmp_path / "whole")
    go(net, optimizer, run)
    _, optimizer, cut = run_of("for_multiply_adds(0.06)", folder=tmp_path / "cut")
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    part = _
    for _ in cut:
        if cut.round == 2:
            break
        optimizer.zero_grad()
        part(x).square().mean().backward()
        optimizer.step()
    with pytest.raises(ValueError, match="allocation"):
        go(*run_of("cost", folder=tmp_path / "cut"))
    other, optimizer, again = run_of(rewound.for_multiply_adds(0.06), folder=tmp_path / "cut")
    go(other, optimizer, again)
    assert again.mask == run.mask
    assert [r.multiply_adds for r in again.result.rounds] == [r.multiply_adds for r in run.result.rounds]
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters()))


@pytest.mark.parametrize("allocation", ["cost", "for_multiply_adds(0.2)"])
def test_a_recipe_names_it(allocation):
    from rewound.experiment.recipe import make_recipe, to_toml, tomllib
    from rewound.tasks import drive, load_task

    recipe = make_recipe({"task": "digits-resnet", "allocation": allocation})
    assert make_recipe(tomllib.loads(to_toml(recipe))) == recipe
    task = load_task("digits-resnet", depth=8, width=4)
    options = {"epochs": 1, "rate": None, "until": 0.2, "technique": "lr-rewinding:1ep"}
    result, _ = drive(task, seed=0, allocation=recipe.allocation, **options)
    assert result.rounds[1].multiply_adds_share < 0.2 + 1e-9
