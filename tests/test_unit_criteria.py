"""Criteria that score channels and hidden units, against values worked out by hand and against the loss itself."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from tests.compaction.zoo import ZOO
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rewound.activations import examples_in, first_order, reading
from rewound.compaction.coupling import find_units
from rewound.compaction.units import Group, Slice, Structure, Work
from rewound.criteria import CRITERIA, batch_norm_scale, fpgm, l1, l2, taylor, taylor_gates, taylor_weights
from rewound.criteria.taylor import multiply_adds
from rewound.evidence import Evidence, of_units
from rewound.parameters import parameters_by_name
from rewound.pruning import prune
from rewound.sites import find_sites
from rewound.tasks.models.resnet import cifar_resnet
from rewound.untouched import call_of


def units(size, each=1, offset=0):
    return offset + torch.arange(size * each).reshape(size, each)


def structure_of(model, groups, work=()):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: t.shape for name, t in tensors.items()}
    return Structure(tuple(groups), shapes, frozenset(parameters_by_name(model)), {}, tuple(work))


def chain(pool=False):
    """conv - bn - relu - conv - relu - flatten - linear, for inputs [N, 2, 6, 6]; and its two groups."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.Conv2d(4, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * (1 if pool else 9), 5),
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    first, second = units(4), units(3)
    columns = units(3, each=1 if pool else 9)
    groups = [
        Group(
            "0",
            "channel",
            4,
            (
                Slice("0.weight", 0, first, "writes"),
                Slice("0.bias", 0, first, "affine"),
                Slice("1.weight", 0, first, "affine"),
                Slice("1.bias", 0, first, "affine"),
                Slice("1.running_mean", 0, first, "buffer"),
                Slice("1.running_var", 0, first, "buffer"),
                Slice("4.weight", 1, first, "reads"),
            ),
        ),
        Group(
            "4",
            "channel",
            3,
            (
                Slice("4.weight", 0, second, "writes"),
                Slice("4.bias", 0, second, "affine"),
                Slice("7.weight", 1, columns, "reads"),
            ),
        ),
    ]
    work = [
        Work("0", 16 * 4 * 2 * 9, (("0.weight", 0), ("0.weight", 1))),
        Work("4", 9 * 3 * 4 * 4, (("4.weight", 0), ("4.weight", 1))),
        Work("7", 27 * 5, (("7.weight", 1),)),
    ]
    return model.eval(), structure_of(model, groups, work)


class Residual(nn.Module):
    """A stem and one block; the stem's channels go through the sum into a mean and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 2, 3, padding=1)
        self.outer = nn.Conv2d(2, 4, 3, padding=1)
        self.outer_norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer_norm(self.outer(F.relu(self.inner(x)))))
        return self.fc(x.mean(dim=(2, 3)))


def residual():
    model = Residual().double().eval()
    four, two = units(4), units(2)
    stream = [Slice(f"{name}.{leaf}", 0, four, role) for name, leaf, role in [
        ("stem", "weight", "writes"), ("stem", "bias", "affine"), ("norm", "weight", "affine"),
        ("norm", "bias", "affine"), ("outer", "weight", "writes"), ("outer", "bias", "affine"),
        ("outer_norm", "weight", "affine"), ("outer_norm", "bias", "affine"),
    ]]  # fmt: skip
    stream += [Slice("inner.weight", 1, four, "reads"), Slice("fc.weight", 1, four, "reads")]
    inner = [Slice("inner.weight", 0, two, "writes"), Slice("inner.bias", 0, two, "affine")]
    inner += [Slice("outer.weight", 1, two, "reads")]
    groups = [Group("stem", "channel", 4, tuple(stream)), Group("inner", "channel", 2, tuple(inner))]
    return model, structure_of(model, groups)


def data(shape, count=6, classes=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def evidence_of(model, structure, x, y, *, sizes=None, loss=F.cross_entropy):
    batches = [(x, y)] if sizes is None else list(zip(x.split(sizes), y.split(sizes)))
    return Evidence(model, batches=batches, loss=loss).with_structure(structure)


# -- norms ------------------------------------------------------------------------------------------------


def test_filter_norms_keep_the_papers_order_within_a_layer():
    model, structure = chain()
    evidence = Evidence(model).with_structure(structure)
    sums = model[0].weight.detach().abs().sum(dim=(1, 2, 3))
    norms = model[4].weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(l1(evidence)["0"], sums / 18)
    torch.testing.assert_close(l2(evidence)["4"], norms / 16**0.5)


def test_filters_that_write_the_same_unit_count_together():
    model, structure = residual()
    scores = l1(Evidence(model).with_structure(structure))
    both = model.stem.weight.abs().sum((1, 2, 3)) + model.outer.weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(scores["stem"], both.detach() / (9 + 18))
    assert list(scores) == ["stem", "inner"]


def test_fpgm_is_the_mean_distance_to_the_other_filters():
    model, structure = chain()
    filters = model[4].weight.detach().flatten(1)
    expected = [sum((f - g).norm() for g in filters) / 2 / 16**0.5 for f in filters]
    torch.testing.assert_close(fpgm(Evidence(model).with_structure(structure))["4"], torch.stack(expected))


def test_fpgm_prunes_the_middle_and_leaves_out_what_is_pruned():
    model, structure = chain()
    with torch.no_grad():
        for i, value in enumerate([-3.0, 0.1, 5.0, 0.0]):
            model[0].weight[i] = value
    scores = fpgm(Evidence(model).with_structure(structure))["0"]
    assert scores[:3].argmin() == 1
    torch.testing.assert_close(scores[1], torch.tensor((3.1 + 4.9) / 2).double())  # not the zero filter


def test_batch_norm_scale_is_gamma_of_the_norm_after_the_writer():
    model, structure = chain()
    scores = batch_norm_scale(Evidence(model).with_structure(structure.restricted([structure["0"]])))
    assert torch.equal(scores["0"], model[1].weight.detach().abs())
    with pytest.raises(ValueError, match="nothing to go by for '4': no batch, instance or group norm"):
        batch_norm_scale(Evidence(model).with_structure(structure))


def test_batch_norm_scale_over_a_residual_sum_is_the_mean():
    model, structure = residual()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]))
        model.outer_norm.weight.copy_(torch.tensor([3.0, 2.0, -1.0, 0.0]))
    scores = batch_norm_scale(Evidence(model).with_structure(structure.restricted([structure["stem"]])))
    assert scores["stem"].tolist() == [2, 2, 2, 2]


def test_batch_norm_scale_of_dense_connections_is_that_of_the_nearest_norm():
    model = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "near": nn.BatchNorm2d(2), "far": nn.BatchNorm2d(5)})
    with torch.no_grad():
        model["near"].weight.fill_(0.5)
    parts = (
        Slice("conv.weight", 0, units(2), "writes"),
        Slice("far.weight", 0, units(2, offset=3), "affine"),
        Slice("near.weight", 0, units(2), "affine"),
    )
    evidence = Evidence(model).with_structure(structure_of(model, [Group("conv", "channel", 2, parts)]))
    assert batch_norm_scale(evidence)["conv"].tolist() == [0.5, 0.5]


# -- Taylor -----------------------------------------------------------------------------------------------


def loss_without(model, structure, name, unit, x, y, share=1.0):
    """The loss when what reads a unit gets (1 - share) of it."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for part in structure[name].slices:
            if part.role == "reads":
                weight = model.get_parameter(part.tensor)
                weight.movedim(part.axis, 0)[part.positions[unit]] *= 1 - share
        return F.cross_entropy(model(x), y)


@pytest.mark.parametrize(("make", "shape"), [(chain, (2, 6, 6)), (residual, (1, 5, 5))])
def test_taylor_is_the_slope_of_the_loss_as_the_unit_goes(make, shape):
    """Trap 23: with one example, positions x score = |directional derivative|."""
    model, structure = make()
    x, y = data(shape, count=1, classes=3)
    scores = taylor(evidence_of(model, structure, x, y), normalise=False)
    positions = {"0": 16, "4": 9, "stem": 25, "inner": 25}
    step = 1e-6
    for group in structure:
        for unit in range(group.size):
            up, down = (loss_without(model, structure, group.name, unit, x, y, s) for s in (step, -step))
            slope = float(up - down) / (2 * step)
            assert float(scores[group.name][unit]) * positions[group.name] == pytest.approx(
                abs(slope), abs=1e-8
            )


def test_taylor_predicts_what_removing_a_small_map_does():
    model, structure = chain()
    with torch.no_grad():
        model[4].weight *= 1e-4  # small maps, so that first order is nearly all
        model[4].bias.mul_(1e-4).abs_()
    x, y = data((2, 6, 6), count=1)
    scores = taylor(evidence_of(model, structure, x, y), normalise=False)["4"]
    dense = F.cross_entropy(model(x), y).detach()
    removed = torch.stack([loss_without(model, structure, "4", unit, x, y) - dense for unit in range(3)])
    torch.testing.assert_close(scores * 9, removed.abs(), rtol=1e-2, atol=1e-12)
    assert (removed.abs() > 1e-7).any()


@pytest.mark.parametrize("normalise", [True, False])
def test_taylor_does_not_depend_on_how_examples_are_batched(normalise):
    model, structure = chain()
    x, y = data((2, 6, 6), count=7)
    ways = [None, 1, 2, [4, 1, 2]]
    found = [taylor(evidence_of(model, structure, x, y, sizes=w), normalise=normalise) for w in ways]
    summed = functools.partial(F.cross_entropy, reduction="sum")
    found.append(
        taylor(
            evidence_of(model, structure, x, y, sizes=3, loss=summed), normalise=normalise, reduction="sum"
        )
    )
    for other in found[1:]:
        for name, scores in found[0].items():
            torch.testing.assert_close(other[name], scores, rtol=1e-10, atol=0)


def test_taylor_takes_the_absolute_value_of_each_example():
    """Two examples whose effects cancel: the mean of gradient x map is 0, its absolute value by example is not."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    parts = (Slice("0.weight", 0, units(1), "writes"), Slice("1.weight", 1, units(1), "reads"))
    structure = structure_of(model, [Group("0", "hidden unit", 1, parts)])
    x = torch.tensor([[1.0], [-1.0]]).double()
    evidence = evidence_of(model, structure, x, None, loss=lambda output, _: output.mean(), sizes=None)
    expected = (model[0].weight * model[1].weight).abs().item()
    assert taylor(evidence, normalise=False)["0"].item() == pytest.approx(expected)
    assert taylor_gates(evidence)["0"].item() == pytest.approx(0, abs=1e-20)


def test_layer_norms_are_one_and_pooling_does_not_change_the_order():
    for pool in (False, True):
        model, structure = chain(pool)
        x, y = data((2, 6, 6))
        evidence = evidence_of(model, structure, x, y)
        scores, raw = taylor(evidence), taylor(evidence, normalise=False)
        assert [float(score.norm()) for score in scores.values()] == pytest.approx([1.0, 1.0])
        torch.testing.assert_close(scores["0"], raw["0"] / raw["0"].norm())


def test_a_layer_that_the_loss_does_not_see_scores_zero_not_nan():
    model, structure = chain()
    with torch.no_grad():
        model[7].weight.zero_()
    scores = taylor(evidence_of(model, structure, *data((2, 6, 6))))
    assert scores["0"].tolist() == [0] * 4
    assert scores["4"].tolist() == [0] * 3


def test_the_work_of_a_unit_and_the_regulariser():
    model, structure = chain()
    evidence = evidence_of(model, structure, *data((2, 6, 6)))
    assert multiply_adds(structure, structure["0"]) == pytest.approx(16 * 2 * 9 + 9 * 3 * 4)
    assert multiply_adds(structure, structure["4"]) == pytest.approx(9 * 4 * 4 + 9 * 5)
    scores, cheap = taylor(evidence), taylor(evidence, flops=1e3)
    torch.testing.assert_close(scores["0"] - cheap["0"], torch.full((4,), 1e3 * 2e-6 * 396).double())
    with pytest.raises(ValueError, match="needs the work of each layer"):
        taylor(evidence.with_structure(structure_of(model, structure)), flops=1e-3)
    with pytest.raises(ValueError, match="'reduction' must be"):
        taylor(evidence, reduction="none")


def test_depthwise_work_is_not_counted_twice():
    model = nn.ModuleDict({"depthwise": nn.Conv2d(4, 4, 3, groups=4)})
    group = Group("depthwise", "channel", 4, (Slice("depthwise.weight", 0, units(4), "writes"),))
    axes = (("depthwise.weight", 0),)
    structure = structure_of(model, [group], [Work("depthwise", 400, axes), Work("depthwise", 400, axes * 2)])
    assert multiply_adds(structure, group) == pytest.approx(100 + 400 * (1 - 0.75**2))


def test_taylor_of_weights_is_the_squared_sum_of_gradient_times_weight():
    model, structure = residual()
    x, y = data((1, 5, 5), classes=3)
    scores = taylor_weights(evidence_of(model, structure, x, y, sizes=2))
    expected = torch.zeros(4).double()
    for a, b in zip(x.split(2), y.split(2)):
        model.zero_grad()
        F.cross_entropy(model(a), b).backward()
        effect = sum((w * w.grad).sum((1, 2, 3)) for w in (model.stem.weight, model.outer.weight))
        expected += effect.detach().square() / 3
    torch.testing.assert_close(scores["stem"], expected)


def test_taylor_of_gates_is_the_squared_gradient_of_a_gate():
    model, structure = chain()
    x, y = data((2, 6, 6))
    scores = taylor_gates(evidence_of(model, structure, x, y, sizes=3))
    expected = torch.zeros(3).double()
    for a, b in zip(x.split(3), y.split(3)):
        gates = torch.ones(3, dtype=torch.float64, requires_grad=True)
        output = model[6:](model[:6](a) * gates[:, None, None])
        expected += torch.autograd.grad(F.cross_entropy(output, b), gates)[0].square() / 2
    torch.testing.assert_close(scores["4"], expected)


@pytest.mark.parametrize("criterion", [taylor, taylor_gates, taylor_weights])
def test_frozen_models_can_be_scored_and_are_left_as_found(criterion):
    model, structure = chain()
    evidence = evidence_of(model, structure, *data((2, 6, 6)))
    expected = criterion(evidence)
    for p in model.parameters():
        p.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    found = criterion(Evidence(model, evidence.scope, batches=[data((2, 6, 6))], loss=F.cross_entropy)
                      .with_structure(structure))  # fmt: skip
    assert all(torch.equal(found[name], scores) for name, scores in expected.items())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


# -- where units are seen ---------------------------------------------------------------------------------


def test_maps_are_seen_where_they_are_read():
    model, structure = residual()
    found = {(s.group, s.module, s.reads, s.axis) for s in find_sites(model, structure)}
    assert found == {("stem", "inner", True, -3), ("stem", "fc", True, -1), ("inner", "outer", True, -3)}


def test_a_group_with_an_unknown_reader_is_seen_where_it_is_written():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1), "odd": nn.Bilinear(3, 3, 1)})
    parts = [Slice("a.weight", 0, units(3), "writes"), Slice("b.weight", 1, units(3), "reads")]
    odd = Slice("odd.weight", 1, units(3), "reads")
    known = find_sites(model, structure_of(model, [Group("a", "hidden unit", 3, tuple(parts))]))
    assert [(s.module, s.reads) for s in known] == [("b", True)]
    partly = find_sites(model, structure_of(model, [Group("a", "hidden unit", 3, (*parts, odd))]))
    assert [(s.module, s.reads, s.axis) for s in partly] == [("a", False, -1)]
    with pytest.raises(ValueError, match=r"maps of 'a' cannot be seen.*'odd.weight'"):
        find_sites(model, structure_of(model, [Group("a", "hidden unit", 3, (odd,))]))


class Recurrent(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.rnn = nn.GRU(3, 4, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x):  # [N, T, 2]
        x = self.embed(x)
        if self.batch_first:
            return self.rnn(x)[0].sum(dim=(1, 2))
        return self.rnn(x.transpose(0, 1))[0].sum(dim=(0, 2))


def test_recurrent_layers_read_sequences_of_either_layout():
    parts = (
        Slice("embed.weight", 0, units(3), "writes"),
        Slice("rnn.weight_ih_l0", 1, units(3), "reads"),
    )
    scores = []
    state = Recurrent(True).double().state_dict()
    for batch_first in (True, False):
        model = Recurrent(batch_first).double()
        model.load_state_dict(state)
        structure = structure_of(model, [Group("embed", "hidden unit", 3, parts)])
        x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(2)).double()
        evidence = evidence_of(model, structure, x, torch.zeros(4), loss=lambda output, y: output.mean())
        scores.append(taylor(evidence)["embed"])
    torch.testing.assert_close(*scores)


def test_what_is_never_called_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            return F.linear(self.a(x), self.b.weight)

    model = Unused()
    parts = (Slice("a.weight", 0, units(3), "writes"), Slice("b.weight", 1, units(3), "reads"))
    structure = structure_of(model, [Group("a", "hidden unit", 3, parts)])
    evidence = evidence_of(model, structure, torch.ones(2, 2), None, loss=lambda output, _: output.sum())
    with pytest.raises(ValueError, match=r"units of 'a' were not seen: .*'taylor-weights'"):
        taylor(evidence)
    assert taylor_weights(evidence)["a"].shape == (3,)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_inputs_by_keyword_are_read_too():
    model = nn.Linear(3, 1)
    structure = structure_of(model, [Group("x", "width", 3, (Slice("weight", 1, units(3), "reads"),))])
    with reading(model, structure) as readings:
        model(input=torch.ones(2, 3))
        assert readings.take()[0].map.shape == (2, 3)


# -- all of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, f in CRITERIA.items() if getattr(f, "of_units", False)])
def test_every_criterion_of_units_scores_every_unit(name):
    model, structure = residual()
    if name == "batch-norm scale":
        structure = structure.restricted([structure["stem"]])
    scores = CRITERIA[name](evidence_of(model, structure, *data((1, 5, 5), classes=3)))
    assert list(scores) == [group.name for group in structure]
    for group in structure:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].is_floating_point()
        assert scores[group.name].isfinite().all()


@pytest.mark.parametrize("name", [name for name, f in CRITERIA.items() if getattr(f, "of_units", False)])
def test_without_units_they_say_what_to_ask_for(name):
    with pytest.raises(ValueError, match="ask for a pattern of units"):
        CRITERIA[name](Evidence(nn.Linear(2, 2)))


def test_options_are_set_with_partial():
    assert of_units(functools.partial(taylor, flops=1e-3)).of_units


def weighted_sum(output, _):
    generator = torch.Generator().manual_seed(0)
    found = [each for each in tree_leaves(output) if isinstance(each, torch.Tensor)]
    return sum(
        (each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in found
    )


ALL_READ = ["resnet_20_option_a", "densenet", "squeeze_excite", "grouped_mixture", "unet", "vit_fused_qkv", "decoder_gqa",
            "gnmt_encoder", "gru_seq2seq_tied"]  # fmt: skip


@pytest.mark.parametrize("name", ALL_READ)
def test_first_order_is_the_slope_of_the_loss_in_every_architecture(name):
    """What the units of a group are worth to a loss, against the loss with a little less of a unit wherever it is read."""
    model, example = ZOO[name]()
    structure = find_units(model, example)
    evidence = Evidence(model, batches=[(example, None)], loss=weighted_sum)
    tried = 0
    for group in structure:
        alone = structure.restricted([group])
        reads = [part for part in group.slices if part.role == "reads"]
        sites = find_sites(model, alone)
        if not all(site.reads for site in sites) or any(".weight_hh" in part.tensor for part in reads):
            continue  # seen where it is written, or not wholly
        effects = {}
        with reading(model, alone) as readings:
            evidence.for_each_batch(
                lambda loss, given: effects.update(first_order(loss, readings.take(), examples_in(given)))  # noqa: B023
            )
        found = effects[group.name][0].sum(dim=0)
        for unit in {0, group.size - 1}:
            slope, step = 0.0, 1e-7
            for less in (step, -step):
                changed = {n: p.detach().clone() for n, p in parameters_by_name(model).items()}
                for part in reads:
                    changed[part.tensor].movedim(part.axis, 0)[part.positions[unit]] *= 1 - less
                args, kwargs = call_of(example)
                with torch.no_grad():
                    value = weighted_sum(torch.func.functional_call(model, changed, args, kwargs), None)
                slope -= float(value) / (2 * less)
            assert float(found[unit]) == pytest.approx(slope, rel=1e-4, abs=1e-5), (group.name, unit)
            tried += 1
    assert tried > 2


@pytest.mark.parametrize(
    "name", [*(n for n, f in CRITERIA.items() if getattr(f, "of_units", False)), "random"]
)
def test_every_criterion_prunes_a_residual_network(name):
    model = cifar_resnet(8, width=4)
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6)
    evidence = Evidence(model.eval(), batches=[(x, y)], loss=F.cross_entropy)
    mask = prune(model, 0.5, criterion=name, pattern="channel", evidence=evidence, example=x[:1])
    assert mask.units_kept == round(0.5 * mask.units_size)
    assert mask.units.keys() == {"stem.0", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1",
                                 "layer3.0.conv2"}  # fmt: skip
