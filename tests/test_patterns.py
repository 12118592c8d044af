"""Patterns: blocks, n:m, and the units of a structure; what is decided together, how many, and what the mask covers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewound.compaction.coupling import find_units
from rewound.compaction.units import (
    Certificate,
    Group,
    Slice,
    Structure,
    alive,
    masks_of,
    mean_over_writers,
)
from rewound.criteria import CRITERIA
from rewound.evidence import Evidence, of_units
from rewound.mask import Mask
from rewound.patterns import as_pattern
from rewound.patterns.blocks import Blocks
from rewound.patterns.n_of_m import NofM, check_n_m
from rewound.patterns.structures import FAMILIES, KINDS, as_certificate
from rewound.patterns.widths import floors, to_multiples
from rewound.pruning import prune


def positions(*rows):
    return torch.tensor(rows, dtype=torch.int64)


def each(n, k=1):
    """Unit u has the entries u * k ... u * k + k - 1."""
    return torch.arange(n * k).reshape(n, k)


class Net(nn.Module):
    """conv - bn - relu - conv - relu - flatten - fc, for inputs [N, 1, 4, 4]."""

    def __init__(self, a=6, b=4):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a)
        self.conv2, self.fc = nn.Conv2d(a, b, 3), nn.Linear(b * 4, 3)

    def forward(self, x):
        return self.fc(self.conv2(self.bn(self.conv1(x)).relu()).relu().flatten(1))


def by_hand(net, certificates=(Certificate.EXACT, Certificate.EXACT)):
    """The structure of Net, written down rather than found."""
    a, b = net.conv1.out_channels, net.conv2.out_channels
    first = (
        Slice("conv1.weight", 0, each(a), "writes"),
        Slice("conv1.bias", 0, each(a), "affine"),
        Slice("bn.weight", 0, each(a), "affine"),
        Slice("bn.bias", 0, each(a), "affine"),
        Slice("bn.running_mean", 0, each(a), "buffer"),
        Slice("conv2.weight", 1, each(a), "reads"),
    )
    second = (
        Slice("conv2.weight", 0, each(b), "writes"),
        Slice("conv2.bias", 0, each(b), "affine"),
        Slice("fc.weight", 1, each(b, 4), "reads"),
    )
    shapes = {name: t.shape for name, t in [*net.named_parameters(), *net.named_buffers()]}
    groups = (
        Group("conv1", "channel", a, first, certificates[0]),
        Group("conv2", "channel", b, second, certificates[1], "because"),
    )
    fixed = {("fc.weight", 0): "is an output of the model", ("fc.bias", 0): "is an output of the model"}
    return Structure(groups, shapes, frozenset(name for name, _ in net.named_parameters()), fixed)


@pytest.fixture
def net():
    return Net()


X = torch.zeros(2, 1, 4, 4)

# ---- units and entries ---------------------------------------------------------------------------------------------------


def test_masks_of_by_hand(net):
    keep = {
        "conv1": torch.tensor([1, 0, 1, 1, 1, 0]) > 0,
        "conv2": torch.tensor([1, 1, 0, 1]) > 0,
    }
    masks = masks_of(by_hand(net), keep)
    assert list(masks) == [
        "conv1.weight", "conv1.bias", "bn.weight", "bn.bias", "conv2.weight", "conv2.bias", "fc.weight",
    ]  # fmt: skip
    assert torch.equal(masks["bn.bias"], keep["conv1"])
    crossing = keep["conv2"][:, None] & keep["conv1"][None]
    assert torch.equal(masks["conv2.weight"], crossing[..., None, None].expand(4, 6, 3, 3))
    assert masks["fc.weight"][0].tolist() == [True] * 8 + [False] * 4 + [True] * 4
    only_first = masks_of(
        by_hand(net), {"conv1": keep["conv1"]}
    )  # conv2 stays whole, and is covered all the same
    assert only_first["conv2.bias"].all()
    assert torch.equal(only_first["conv2.weight"], keep["conv1"][None, :, None, None].expand(4, 6, 3, 3))
    only_first["conv2.weight"][0] = True  # owned, not a view of something smaller
    with pytest.raises(ValueError, match="no group 'conv3' of units; there are conv1, conv2"):
        masks_of(by_hand(net), {"conv3": keep["conv1"]})
    with pytest.raises(ValueError, match=r"bool tensor of its 6 units \(got bool \[4\]\)"):
        masks_of(by_hand(net), {"conv1": keep["conv2"]})


def overlapping():
    """Two heads of three dimensions in the same six rows."""
    heads = Group(
        "heads", "head", 2, (Slice("q", 0, each(2, 3), "writes"), Slice("o", 1, each(2, 3), "reads"))
    )
    dims = Group("dims", "head dim", 3, (Slice("q", 0, positions([0, 3], [1, 4], [2, 5]), "writes"),))
    shapes = {"q": torch.Size([6, 2]), "o": torch.Size([2, 6])}
    return Structure((heads, dims), shapes, frozenset(shapes))


def test_an_entry_is_kept_if_all_its_units_are():
    masks = masks_of(
        overlapping(), {"heads": torch.tensor([True, False]), "dims": torch.tensor([True, True, False])}
    )
    assert masks["q"].tolist() == [[True] * 2] * 2 + [[False] * 2] * 4
    assert masks["o"].tolist() == [[True] * 3 + [False] * 3] * 2  # the dims have no part in o here


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_alive_undoes_masks_of(data):
    net = Net()
    structure = by_hand(net)
    keep = {
        group.name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=group.size, max_size=group.size)))
        for group in structure
    }
    again = alive(structure, masks_of(structure, keep))
    assert all(torch.equal(again[name], keep[name]) for name in keep)


def test_a_unit_lives_until_all_of_it_is_masked(net):
    masks = masks_of(by_hand(net), {"conv1": torch.tensor([0, 1, 1, 1, 1, 1]) > 0})
    masks["bn.bias"][0] = True  # what "dead" filters of other tools leave behind
    assert alive(by_hand(net), masks)["conv1"].all()
    del masks["bn.bias"]  # not in the mask at all: whole
    assert alive(by_hand(net), masks)["conv1"].all()


def test_mean_over_writers_by_hand(net):
    scores = {name: p.detach().abs() for name, p in net.named_parameters() if p.ndim > 1}
    found = mean_over_writers(by_hand(net), scores)
    torch.testing.assert_close(
        found["conv1"], scores["conv1.weight"].double().flatten(1).mean(1), rtol=1e-14, atol=0
    )
    assert found["conv1"].dtype is torch.float64
    two = Structure(
        (
            Group(
                "sum", "channel", 2, (Slice("a", 0, each(2), "writes"), Slice("b", 1, each(2, 2), "writes"))
            ),
        ),
        {"a": torch.Size([2, 3]), "b": torch.Size([1, 4])},
        frozenset("ab"),
    )
    of_both = {"a": torch.tensor([[1.0, 2, 3], [4, 5, 6]]), "b": torch.tensor([[10.0, 20, 30, 40]])}
    assert mean_over_writers(two, of_both)["sum"].tolist() == [
        36 / 5,
        85 / 5,
    ]  # over entries, not over tensors
    assert mean_over_writers(two, {"b": of_both["b"]})["sum"].tolist() == [15.0, 35.0]
    assert mean_over_writers(two, {}) == {}


def test_the_mean_leaves_out_what_is_pruned_already(net):
    """So that a unit scores the same in the masked network and in the smaller one."""
    structure = by_hand(net)
    keep = {"conv1": torch.tensor([1, 0, 1, 0, 1, 1]) > 0}
    masks = masks_of(structure, keep)
    scores = {"conv2.weight": net.conv2.weight.detach().abs()}
    smaller = scores["conv2.weight"][:, keep["conv1"]].double().flatten(1).mean(1)
    found = mean_over_writers(structure, scores, masks)["conv2"]
    torch.testing.assert_close(found, smaller, rtol=1e-14, atol=0)
    nothing = {"conv2.weight": torch.zeros(4, 6, 3, 3, dtype=torch.bool)}
    assert mean_over_writers(structure, scores, nothing)["conv2"].tolist() == [0.0] * 4
    scores["conv2.weight"][:, 1] = math.nan  # under the mask
    torch.testing.assert_close(
        mean_over_writers(structure, scores, masks)["conv2"], smaller, rtol=1e-14, atol=0
    )


# ---- counts --------------------------------------------------------------------------------------------------------------

widths = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(widths, st.integers(2, 8), st.sampled_from([0.0, 0.05, 0.5]))
def test_to_multiples_gives_allowed_counts_and_the_nearest_sum(rows, multiple, share):
    sizes = {str(k): size for k, (size, _, _) in enumerate(rows)}
    survivors = {str(k): max(1, round(s * size)) for k, (size, s, _) in enumerate(rows)}
    least = floors(sizes, survivors, share)
    wanted = {
        str(k): least[str(k)] + round(w * (survivors[str(k)] - least[str(k)]))
        for k, (_, _, w) in enumerate(rows)
    }
    counts = to_multiples(wanted, sizes, survivors, least, multiple)
    for name, count in counts.items():
        whole = count == sizes[name]
        small = count == survivors[name]  # and nothing else was possible
        assert count % multiple == 0 or whole or small
        assert 1 <= count <= survivors[name]
    over = sum(counts.values()) - sum(wanted.values())
    for name, count in counts.items():  # no step of one group brings the sum nearer
        for other in range(multiple, survivors[name] + 1, multiple):
            if (
                other >= least[name]
                and abs(other - count) <= multiple
                and other != count
                and count % multiple == 0
            ):
                assert abs(over + other - count) >= abs(over)


def test_widths_of_whole_multiples_meet_the_sum_to_half_a_step():
    sizes = {"a": 64, "b": 64, "c": 128}
    ones = dict.fromkeys(sizes, 1)
    for a, b, c in itertools.product((1, 13, 60), (5, 20, 64), (3, 99, 128)):
        counts = to_multiples({"a": a, "b": b, "c": c}, sizes, sizes, ones, 8)
        assert all(count % 8 == 0 for count in counts.values())
        assert abs(sum(counts.values()) - max(24, a + b + c)) <= 4


def test_floors():
    assert floors({"a": 100, "b": 3, "c": 10}, {"a": 100, "b": 3, "c": 1}, 0.25) == {"a": 25, "b": 1, "c": 1}
    assert floors({"a": 20}, {"a": 20}, 0.05) == {
        "a": 1
    }  # 0.05 x 20 is one, whatever binary fractions make of it
    assert floors({"a": 8}, {"a": 8}, 0.0) == {"a": 1}


# ---- reading patterns ----------------------------------------------------------------------------------------------------


def test_patterns_by_text():
    assert str(as_pattern("weight")) == "weight"
    assert as_pattern("4x1") == Blocks(4, 1)
    assert as_pattern("2:4") == NofM(2, 4)
    assert as_pattern("head").asked == ("head",)
    assert set(KINDS) == set().union(*FAMILIES.values())
    for wrong, message in [
        ("chanel", "unknown pattern 'chanel': did you mean 'channel'"),
        ("block", "or blocks such as '4x1'; n:m such as '2:4'"),
        ("4:4", "0 < n < m"),
        ("0:4", "0 < n < m"),
        ("1x1", "two weights or more"),
        ("0x4", "two weights or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_pattern(wrong)
    for wrong in (3, None, ["a", 1], ()):
        with pytest.raises(TypeError, match="'pattern' must be a text, a tuple of texts or a Structure"):
            as_pattern(wrong)


def test_certificates_by_text():
    assert as_certificate("exact") is Certificate.EXACT
    assert as_certificate(Certificate.APPROXIMATE) is Certificate.APPROXIMATE
    with pytest.raises(ValueError, match="unknown certificate 'exakt': did you mean 'exact'"):
        as_certificate("exakt")


# ---- blocks --------------------------------------------------------------------------------------------------------------


def blocks_by_definition(weight, rows, columns):
    """(score, entries) of each block, one at a time."""
    matrix = weight.reshape(len(weight), -1)
    for r in range(0, matrix.shape[0], rows):
        for c in range(0, matrix.shape[1], columns):
            yield r, c, matrix[r : r + rows, c : c + columns]


@pytest.mark.parametrize("shape", [(4, 8), (5, 7), (3, 2, 3, 3), (1, 5)])
@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (4, 1), (1, 4), (3, 5), (8, 16)])
def test_blocks_equal_their_definition(shape, rows, columns):
    weight, blocks = torch.rand(shape), Blocks(rows, columns)
    means, listed = blocks.mean(weight), list(blocks_by_definition(weight, rows, columns))
    assert means.numel() == len(listed)
    torch.testing.assert_close(means.flatten(), torch.stack([b.mean() for _, _, b in listed]))
    kept = torch.rand(means.shape) > 0.5
    expected = torch.zeros(weight.reshape(len(weight), -1).shape, dtype=torch.bool)
    for (r, c, _), keep in zip(listed, kept.flatten()):
        expected[r : r + rows, c : c + columns] = keep
    assert torch.equal(blocks.spread(kept, weight.shape), expected.reshape(shape))
    assert torch.equal(blocks.any(blocks.spread(kept, weight.shape)), kept)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(6, 4, 3), nn.ConvTranspose1d(3, 5, 2)])
def test_blocks_of_a_transposed_weight_are_rows_of_outputs(layer):
    mask = prune(layer, 0.5, pattern="2x1")
    turned = mask["weight"].movedim(1, 0)
    for first in range(0, turned.shape[0] - 1, 2):
        assert torch.equal(turned[first], turned[first + 1])


@pytest.mark.parametrize("pattern", ["2x1", "4x1", "1x4", "4x4"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "lamp", {"fc.weight": 0.3}])
def test_blocks_are_exact_whole_and_nested(pattern, allocation):
    net, blocks = Net(8, 8), as_pattern(pattern)
    mask = None
    for density in (0.7, 0.4):
        smaller = prune(net, density, pattern=pattern, allocation=allocation, mask=mask)
        assert smaller.units_kept == round(density * smaller.units_size)
        for name, kept in smaller.items():
            assert torch.equal(blocks.spread(blocks.any(kept), kept.shape), kept)
            assert smaller.units[name] == (int(blocks.any(kept).sum()), blocks.any(kept).numel())
        assert mask is None or smaller <= mask
        mask = smaller


def test_blocks_keep_the_best_and_ties_keep_the_earlier():
    layer = nn.Linear(2, 4, bias=False)
    layer.weight.data = torch.tensor([[1.0, 9.0], [1.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
    mask = prune(layer, 0.5, pattern="2x1")  # means 1, 5 / 4, 4.5
    assert mask["weight"].tolist() == [[False, True], [False, True], [False, True], [False, True]]
    nn.init.ones_(layer.weight)
    assert prune(layer, 0.5, pattern="2x1")["weight"].tolist() == [[True, True]] * 2 + [[False, False]] * 2


def test_blocks_within_single_weights():
    net = Net(8, 8)
    before = prune(net, 0.5)
    mask = prune(net, 0.4, pattern="2x1", mask=before)
    assert mask <= before
    assert mask.units_kept == round(0.4 * mask.units_size)


# ---- n:m -----------------------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """As transformers has it: a linear layer that stores [in, out]."""

    def __init__(self, out, into):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(into, out))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (5, 8), (3, 16)])
def test_n_of_m_is_the_best_of_every_m(n, m):
    layer = nn.Linear(32, 6)
    mask = prune(layer, None, pattern=f"{n}:{m}")
    groups = layer.weight.detach().abs().reshape(6, -1, m)
    kept = mask["weight"].reshape(groups.shape)
    assert (kept.sum(-1) == n).all()
    lowest_kept = groups.masked_fill(~kept, math.inf).amin(-1)
    assert (lowest_kept > groups.masked_fill(kept, -math.inf).amax(-1)).all()
    assert prune(layer, n / m, pattern=f"{n}:{m}") == mask
    check_n_m(mask, f"{n}:{m}")


def test_n_of_m_goes_along_the_input_axis_of_each_kernel_position():
    conv = nn.Conv2d(8, 3, 2)
    mask = prune(conv, None, pattern="2:4")["weight"]
    assert (mask.reshape(3, 2, 4, 2, 2).sum(2) == 2).all()
    up = nn.ConvTranspose2d(8, 3, 2)
    mask = prune(up, None, pattern="2:4")
    assert (mask["weight"].reshape(2, 4, 3, 2, 2).sum(1) == 2).all()
    check_n_m(mask, "2:4", up)
    gpt = nn.Sequential(Conv1D(6, 8))
    mask = prune(gpt, None, pattern="2:4")
    assert (mask["0.weight"].reshape(2, 4, 6).sum(1) == 2).all()


def test_n_of_m_ties_keep_the_earlier_and_pruned_stays_pruned():
    layer = nn.Linear(8, 1, bias=False)
    nn.init.ones_(layer.weight)
    assert prune(layer, None, pattern="2:4")["weight"].tolist() == [[True, True, False, False] * 2]
    before = Mask({"weight": torch.tensor([[0, 0, 0, 1, 0, 1, 1, 1]]) > 0})
    after = prune(layer, None, pattern="2:4", mask=before)
    assert after["weight"].tolist() == [[False, False, False, True, False, True, True, False]]
    layer.weight.data[0, 0] = -math.inf  # even where the score of what is gone is the highest
    assert prune(layer, None, pattern="2:4", mask=before) == after


def test_n_of_m_leaves_out_what_does_not_divide_and_says_so(net):
    with pytest.warns(
        UserWarning, match=r"'conv1.weight' stays as it is under pattern '2:4': its input axis has 1 entries"
    ):
        mask = prune(net, 0.5, pattern="2:4", scope=["conv1.weight", "fc.weight"])
    assert list(mask) == ["fc.weight"]
    assert mask.density == 0.5
    before = prune(net, 0.5, scope=["conv1.weight", "fc.weight"])
    with pytest.warns(UserWarning, match="stays as it is"):
        mask = prune(net, None, pattern="2:4", mask=before)
    assert torch.equal(mask["conv1.weight"], before["conv1.weight"])
    assert mask <= before
    with pytest.raises(
        ValueError, match=r"no weight in scope can be pruned 2:4: 'conv1.weight': its input axis has 1"
    ):
        prune(net, 0.5, pattern="2:4", scope=["conv1.weight"])


def test_n_of_m_has_one_density_and_no_allocation(net):
    scope = ["fc.weight"]
    with pytest.raises(ValueError, match=r"'density' can only be 0\.5 or None"):
        prune(net, 0.4, pattern="2:4", scope=scope)
    for options in (
        {"allocation": "uniform"},
        {"allocation": {"fc.weight": 0.5}},
        {"floor": 0.1},
        {"multiple": 8},
    ):
        with pytest.raises(ValueError, match="leave out allocation, multiple and floor"):
            prune(net, 0.5, pattern="2:4", scope=scope, **options)
    net.fc.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"'fc\.weight': 1 of 48 scores are NaN"):
        prune(net, None, pattern="2:4", scope=scope)


def test_check_n_m_names_the_place():
    mask = {"w": torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 1, 1, 0]]) > 0}
    with pytest.raises(
        ValueError, match=r"'w' is not 2:4: it keeps 3 of the 4 weights 4 to 7 along the input axis \(row 1\)"
    ):
        check_n_m(mask, "2:4")
    check_n_m(mask, "3:4")
    with pytest.raises(ValueError, match="no multiple of 3"):
        check_n_m(mask, "1:3")


# ---- structures ----------------------------------------------------------------------------------------------------------


def dead_rows(net, mask):
    mask.apply_(net)
    return {
        "conv1": net.conv1.weight.flatten(1).abs().sum(1) == 0,
        "conv2": net.conv2.weight.flatten(1).abs().sum(1) == 0,
    }


def test_the_structure_found_is_the_one_by_hand(net):
    """What the other tests stand on: masks of both are the same."""
    found = prune(net, 0.5, pattern="channel", example=X)
    assert found == prune(net, 0.5, pattern=by_hand(net))
    assert found == prune(net, 0.5, pattern=find_units(net, X))
    assert found == prune(net, 0.5, pattern="unit", example={"x": X})


@pytest.mark.parametrize("allocation", ["global", "uniform", "lamp"])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.77, 1.0])
def test_units_are_counted_exactly_and_dead_entirely(net, allocation, density):
    mask = prune(net, density, pattern=by_hand(net), allocation=allocation)
    assert mask.units_kept == round(density * 10)
    assert mask.units_size == 10
    assert set(mask) == {
        "conv1.weight",
        "conv1.bias",
        "bn.weight",
        "bn.bias",
        "conv2.weight",
        "conv2.bias",
        "fc.weight",
    }
    assert list(mask) == [name for name, _ in net.named_parameters() if name in mask]
    dead = dead_rows(net, mask)
    for name, gone in dead.items():
        kept, size = mask.units[name]
        assert (int((~gone).sum()), len(gone)) == (kept, size)
    assert not net.conv1.bias[dead["conv1"]].any()
    assert not net.bn.weight[dead["conv1"]].any()
    assert not net.bn.bias[dead["conv1"]].any()
    assert not net.conv2.weight[:, dead["conv1"]].any()
    assert not net.fc.weight.reshape(3, 4, 4)[:, dead["conv2"]].any()
    assert net.conv1.bias[~dead["conv1"]].all()
    assert f"{mask.unit_density:.3f} of units, {mask.units_kept} of 10" in repr(mask)


def test_the_best_units_stay(net):
    mask = prune(net, None, pattern=by_hand(net), allocation={"conv1": 0.5, "conv2": 0.5})
    for name, gone in dead_rows(Net(), mask).items():
        scores = getattr(net, name).weight.detach().abs().flatten(1).mean(1)
        assert scores[~gone].min() > scores[gone].max()


def test_ties_keep_the_earlier_unit(net):
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1)
    mask = prune(net, 0.5, pattern=by_hand(net), floor=0.0)
    assert mask["conv1.bias"].tolist() == [True] * 4 + [False] * 2  # one of conv2's is its least
    assert mask["conv2.bias"].tolist() == [True] + [False] * 3


def test_no_group_is_emptied(net):
    with torch.no_grad():
        net.conv2.weight *= 1e-6
    mask = prune(net, 0.5, pattern=by_hand(net))
    assert dict(mask.units) == {"conv1": (4, 6), "conv2": (1, 4)}
    mask = prune(net, 0.5, pattern=by_hand(net), floor=0.5)
    assert dict(mask.units) == {"conv1": (3, 6), "conv2": (2, 4)}
    wide = Net(60, 60)
    with torch.no_grad():
        wide.conv2.weight *= 1e-6
    assert prune(wide, 0.5, pattern=by_hand(wide)).units["conv2"] == (3, 60)  # 5 % under the global ranking
    assert prune(wide, 0.5, pattern=by_hand(wide), floor=0).units["conv2"] == (1, 60)
    assert prune(wide, 0.5, pattern=by_hand(wide), floor=0.2).units["conv2"] == (12, 60)
    assert dict(prune(wide, 0.01, pattern=by_hand(wide)).units) == {"conv1": (3, 60), "conv2": (3, 60)}
    assert prune(wide, None, pattern=by_hand(wide), allocation={"conv2": 0.0}).units["conv2"] == (1, 60)
    given = prune(net, 0.6, pattern=by_hand(net), allocation={"conv2": 0.0})
    assert dict(given.units) == {"conv1": (5, 6), "conv2": (1, 4)}
    assert (
        prune(net, 0.1, pattern=by_hand(net), allocation="uniform").units_kept == 2
    )  # one each, the nearest there is


def test_floors_of_weights_and_blocks(mlp):
    with torch.no_grad():
        mlp[0].weight *= 1e-6
    assert prune(mlp, 1 / 3).counts["0.weight"] == 0
    mask = prune(mlp, 1 / 3, floor=0.25)
    assert mask.counts == {"0.weight": 15, "3.weight": 15}
    assert prune(mlp, 1 / 3, floor=0.25, pattern="2x1").units["0.weight"][0] == 8  # of 30 blocks, rounded up
    for pattern in ("weight", "2x1"):
        with pytest.raises(
            ValueError, match="'multiple' is for units such as channels, and this pattern prunes"
        ):
            prune(mlp, 0.5, pattern=pattern, multiple=8)
    for floor in (-0.1, 1.5, "a", True):
        with pytest.raises(ValueError, match=r"'floor' must be a share in \[0, 1\]"):
            prune(mlp, 0.5, floor=floor)
    for multiple in (0, 1.0, True):
        with pytest.raises(ValueError, match="'multiple' must be a whole number from 1"):
            prune(mlp, 0.5, multiple=multiple)


def test_widths_are_multiples():
    net = Net(16, 10)
    mask = prune(net, 0.5, pattern=by_hand(net), multiple=4)
    kept = dict(mask.units)
    assert kept["conv1"][0] % 4 == 0
    assert kept["conv2"][0] % 4 == 0 or kept["conv2"][0] == 10
    assert abs(mask.units_kept - 13) <= 2
    assert prune(net, 0.9, pattern=by_hand(net), multiple=8).units["conv2"][0] in (8, 10)
    assert (
        prune(Net(6, 4), 0.5, pattern=by_hand(Net(6, 4)), multiple=8).unit_density == 1.0
    )  # nothing else is possible


def test_structured_masks_are_nested_and_dead_units_count_as_pruned(net):
    structure = by_hand(net)
    mask = prune(net, 0.7, pattern=structure)
    with torch.no_grad():  # what is dead may have grown, and is no candidate
        for name, kept in mask.items():
            net.get_parameter(name)[~kept] = 100.0
    smaller = prune(net, 0.4, pattern=structure, mask=mask)
    assert smaller <= mask
    assert smaller.units_kept == 4
    assert prune(net, 0.7, pattern=structure, mask=mask) == mask
    with pytest.raises(ValueError, match=r"asks to keep 8 of 10 units, and the mask has only 7 left"):
        prune(net, 0.8, pattern=structure, mask=mask)


def test_units_within_single_weights(net):
    before = prune(net, 0.5)
    mask = prune(net, 0.5, pattern=by_hand(net), mask=before)
    assert mask.units_kept == 5
    for name, kept in before.items():
        assert not (mask[name] & ~kept).any()
    assert set(mask) > set(before)
    only_first = by_hand(net).restricted([by_hand(net)["conv1"]])
    again = prune(net, 0.5, pattern=only_first, mask=before)
    assert torch.equal(again["fc.weight"], before["fc.weight"])  # of no unit here, and as pruned as it was


def test_candidates_are_what_the_mask_counts(net):
    mask = prune(net, 0.5, pattern=("conv1",), example=X)
    assert set(mask.units) == {"conv1"}
    again = prune(net, 1 / 3, pattern="channel", example=X, mask=mask)
    assert dict(again.units) == {"conv1": (2, 6)}
    other = prune(net, 0.5, pattern=("conv2",), example=X, mask=again)
    assert dict(other.units) == {"conv2": (2, 4)}
    assert all(not (other[name] & ~kept).any() for name, kept in again.items())


def test_scope_says_whose_units(net):
    assert set(prune(net, 0.5, pattern=by_hand(net), scope=["conv1.weight"]).units) == {"conv1"}
    net.conv2.weight.requires_grad_(False)
    mask = prune(net, 0.5, pattern=by_hand(net))
    assert set(mask.units) == {"conv1"}
    assert not mask["conv2.weight"].all()  # what reads a dead channel goes with it, frozen or not
    with pytest.raises(ValueError, match="nothing can be pruned") as error:
        prune(net, 0.5, pattern=by_hand(net), scope=["fc.weight"])
    assert "10 of kind 'channel' in 2 groups" in str(error.value)
    assert "'conv1': its writer 'conv1.weight' is left out: not matched by scope=['fc.weight']" in str(
        error.value
    )
    assert "'fc.weight' axis 0, 'fc.bias' axis 0: is an output of the model" in str(error.value)


def test_only_exact_units_by_default(net):
    structure = by_hand(net, (Certificate.EXACT_AFTER_FOLD, Certificate.APPROXIMATE))
    assert set(prune(net, 0.5, pattern=structure).units) == {"conv1"}
    assert set(prune(net, 0.5, pattern=structure, allow="approximate").units) == {"conv1", "conv2"}
    with pytest.raises(ValueError, match="nothing can be pruned") as error:
        prune(net, 0.5, pattern=structure, allow="exact")
    assert "'conv1': its removal is exact after fold: allow='exact after fold' admits it" in str(error.value)
    assert "'conv2': its removal is approximate (because): allow='approximate' admits it" in str(error.value)


def test_patterns_choose_kinds():
    """A residual net: conv0 and conv2 write the same channels, which are no filters; conv1's are."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0, self.conv1, self.conv2 = (
                nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 4), (4, 6), (6, 4))
            )
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.conv0(x).relu()
            x = x + self.conv2(self.conv1(x).relu())
            return self.fc2(self.fc1(x.mean((2, 3))).relu())

    net = Residual()
    sizes = {
        p: prune(net, 1.0, pattern=p, example=X).units for p in ("channel", "filter", "hidden unit", "unit")
    }
    assert sorted(size for _, size in sizes["channel"].values()) == [4, 6]
    assert [size for _, size in sizes["filter"].values()] == [6]
    assert [size for _, size in sizes["hidden unit"].values()] == [8]
    assert len(sizes["unit"]) == 3
    assert len(prune(net, 1.0, pattern=("filter", "hidden unit"), example=X).units) == 2
    with pytest.raises(ValueError, match="nothing can be pruned by pattern 'head'"):
        prune(net, 0.5, pattern="head", example=X)
    name = next(iter(sizes["filter"]))
    assert prune(net, 0.5, pattern=name, example=X) == prune(net, 0.5, pattern="filter", example=X)
    with pytest.raises(ValueError, match=f"unknown pattern '{name}x': did you mean '{name}'"):
        prune(net, 0.5, pattern=name + "x", example=X)
    with pytest.raises(ValueError, match="unknown kind or group of units 'chanel': did you mean 'channel'"):
        prune(net, 0.5, pattern=("chanel",), example=X)


def test_allocation_by_name(net):
    structure = by_hand(net)
    for mapping in (
        {"conv1": 0.5},
        {"conv1.weight": 0.5},
        {"*1": 0.5},
        {"*": 0.1, "conv1": 0.5, "conv2.weight": 1.0},
    ):
        assert dict(prune(net, None, pattern=structure, allocation=mapping).units) == {
            "conv1": (3, 6),
            "conv2": (4, 4),
        }
    assert dict(prune(net, 0.6, pattern=structure, allocation={"conv1": 0.5}).units) == {
        "conv1": (3, 6),
        "conv2": (3, 4),
    }
    with pytest.raises(ValueError, match="no tensor in scope matches 'conv9'; nearest: 'conv"):
        prune(net, None, pattern=structure, allocation={"conv9": 0.5})
    with pytest.raises(ValueError, match=r"9 of 10 units cannot be kept(.|\n)*can be 0.4 to 0.7"):
        prune(net, 0.9, pattern=structure, allocation={"conv1": 0.5})
    assert dict(prune(net, 0.5, pattern=structure, allocation="uniform").units) == {
        "conv1": (3, 6),
        "conv2": (2, 4),
    }
    with pytest.raises(ValueError, match="allocation 'erk' says how dense one weight tensor is"):
        prune(net, 0.5, pattern=structure, allocation="erk")

    def mine(budget):
        assert (budget.what, budget.sizes, budget.kept) == ("units", {"conv1": 6, "conv2": 4}, 5)
        return {"conv1": 1, "conv2": 4}

    assert prune(net, 0.5, pattern=structure, allocation=mine).units["conv1"] == (1, 6)


def test_criteria_of_units(net):
    seen = []

    @of_units
    def last_first(evidence):
        seen.append(evidence.structure)
        return {group.name: torch.arange(group.size, dtype=torch.float64) for group in evidence.structure}

    mask = prune(net, None, pattern=by_hand(net), allocation={"*": 0.5}, criterion=last_first)
    assert mask["conv1.bias"].tolist() == [False] * 3 + [True] * 3
    assert [group.name for group in seen[0]] == ["conv1", "conv2"]
    with pytest.raises(ValueError, match="criterion 'last_first' scores units such as channels"):
        prune(net, 0.5, criterion=last_first)
    wrong = of_units(lambda evidence: {"conv1": torch.ones(6)})
    with pytest.raises(ValueError, match="returned no scores for 'conv2'"):
        prune(net, 0.5, pattern=by_hand(net), criterion=wrong)
    wrong = of_units(lambda evidence: {"conv1": torch.ones(6), "conv2": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'conv2' are \(3,\), the group \(4,\)"):
        prune(net, 0.5, pattern=by_hand(net), criterion=wrong)
    net.conv2.weight.data[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 4 scores of 'conv2' are NaN"):
        prune(net, 0.5, pattern=by_hand(net))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_channels(net, criterion):
    evidence = Evidence(
        net,
        batches=[(torch.randn(4, 1, 4, 4), torch.randint(3, (4,)))],
        loss=nn.functional.cross_entropy,
        movement={name: torch.randn(p.shape) for name, p in net.named_parameters()},
    )
    first = by_hand(net).restricted([by_hand(net)["conv1"]])  # the one with a batch norm
    structure = first if criterion == "batch-norm scale" else by_hand(net)
    size = sum(group.size for group in structure)
    assert prune(net, 0.5, pattern=structure, criterion=criterion, evidence=evidence).units_kept == size // 2


def test_random_units_do_not_tell_layers_apart_by_size():
    """The mean of many random numbers is 1/2: a global ranking of means would keep all or nothing of a large layer."""
    net = Net(200, 40)
    kept = [
        prune(net, 0.25, pattern=by_hand(net), criterion="random", evidence=Evidence(net, seed=s))
        for s in range(5)
    ]
    for mask in kept:
        assert 0.1 < mask.units["conv2"][0] / 40 < 0.45
    assert len({mask.fingerprint for mask in kept}) == 5


def test_units_need_an_example_and_the_structure_of_this_model(net):
    with pytest.raises(ValueError, match=r"pattern 'channel' must run the model once(.|\n)*pass example="):
        prune(net, 0.5, pattern="channel")
    with pytest.raises(
        ValueError, match=r"structure has 'conv1.weight' of shape \(6, 1, 3, 3\), the model \(8, 1, 3, 3\)"
    ):
        prune(Net(8, 4), 0.5, pattern=by_hand(net))
    with pytest.raises(ValueError, match="the mask is another model's"):
        prune(Net(8, 4), 0.5, pattern=by_hand(Net(8, 4)), mask=prune(net, 0.5, pattern=by_hand(net)))


def test_wrapped_models_have_the_same_units(net):
    mask = prune(net, 0.5, pattern="channel", example=X)
    for wrapped in (
        torch.compile(net, backend="eager"),
        nn.DataParallel(net),
        torch.optim.swa_utils.AveragedModel(net),
    ):
        assert prune(wrapped, 0.5, pattern="channel", example=X) == mask
    assert net.training
