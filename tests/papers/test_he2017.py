"""Trap 24: LASSO with the weights as they are, Y from the original network, X from the pruned one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sklearn", reason="the channel selection needs the extra 'tasks'")

from rewound.compaction.coupling import find_units
from rewound.compaction.surgery import compact
from rewound.papers.he2017 import he2017
from rewound.papers.he2017.samples import take_samples
from rewound.papers.he2017.solve import _small, least_squares, moments_of, select
from rewound.pruning import prune


def chain(norm=True, bias=True):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=bias),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=bias),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    ).double()


def images(count=120, shape=(2, 8, 8), seed=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


def batches(x, size=50):
    return [(part, None) for part in x.split(size)]


def randomised(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


# -- samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(3, 5, (3, 2), dilation=(2, 1), padding="same"),
        nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular"),
        nn.Conv1d(3, 5, 4, stride=3),
        nn.Conv3d(3, 5, 2, padding=1, bias=False),
        nn.Linear(7, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("places", [4, 10_000])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_patches_times_weights_are_the_outputs(layer, places):
    layer = layer.double()
    space = {nn.Conv2d: (9, 7), nn.Conv1d: (11,), nn.Conv3d: (4, 5, 3), nn.Linear: (3, 7)}[type(layer)]
    x = torch.randn(6, *(() if isinstance(layer, nn.Linear) else (3,)), *space).double()
    net = nn.Sequential(nn.Identity(), layer)
    found = take_samples(net, ["1"], [(x[:4], None), (x[4:], None)], places=places, seed=0, inputs=["1"])["1"]
    outputs = found.inputs @ layer.weight.detach().flatten(1).T
    if layer.bias is not None:
        outputs += layer.bias.detach()
    torch.testing.assert_close(outputs, found.outputs)
    assert found.norm is None
    assert found.added is None
    assert len(found.outputs) == 6 * min(places, layer(x)[0].numel() // 5)


def test_the_same_places_are_drawn_every_time_and_others_for_another_seed():
    net, x = randomised(chain()), images()
    a, b, c = (take_samples(net, ["0"], batches(x), places=3, seed=s)["0"].outputs for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


class Block(nn.Module):
    """conv - norm - relu - conv - norm, plus the input (or a projection of it), plainly or in place."""

    def __init__(self, in_place=False, width=4):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv4, self.norm4 = nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)
        self.in_place = in_place

    def forward(self, x):
        x = F.relu(self.stem(x))
        for first, norm, second, last in [
            (self.conv1, self.norm1, self.conv2, self.norm2), (self.conv3, self.norm3, self.conv4, self.norm4)
        ]:  # fmt: skip
            y = last(second(F.relu(norm(first(x)))))
            if self.in_place:
                y += x
            else:
                y = x + y
            x = F.relu(y)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_added_and_the_norm_are_found(in_place):
    net, x = randomised(Block(in_place).double()), images(4)
    found = take_samples(net, ["conv1", "conv2", "fc"], [(x, None)], places=10_000, seed=0)
    assert (found["conv1"].norm, found["conv2"].norm, found["fc"].norm) == ("norm1", "norm2", None)
    assert found["conv1"].added is None
    with torch.no_grad():
        stem = F.relu(net.stem(x))
    torch.testing.assert_close(found["conv2"].added, stem.flatten(2).mT.reshape(-1, 4))


# -- the two steps ----------------------------------------------------------------------------------------


def test_the_small_lasso_is_the_same_lasso():
    z, t = torch.randn(50, 6).double(), torch.randn(50).double()
    design, target = _small(z.T @ z, z.T @ t)
    torch.testing.assert_close(design.T @ design, z.T @ z)
    torch.testing.assert_close(design.T @ target, z.T @ t)


def test_moments_are_those_of_the_contributions():
    x, w = torch.randn(30, 8).double(), torch.randn(5, 8).double()
    t, importance = torch.randn(30, 5).double(), torch.rand(5).double()
    columns = torch.tensor([[0, 1], [6, 7], [2, 3]])
    gram, moments = moments_of(x, t, w, columns, importance, seed=0)
    z = torch.stack([((x - x.mean(0))[:, c] @ w[:, c].T * importance).reshape(-1) for c in columns])
    torch.testing.assert_close(gram, z @ z.T)
    torch.testing.assert_close(moments, z @ ((t - t.mean(0)) * importance).reshape(-1))


def test_lasso_keeps_as_many_as_asked_and_the_strong_ones():
    z = torch.linalg.qr(torch.randn(400, 20).double()).Q  # nothing stands in for another
    strength = torch.linspace(-2, 2, 20).double()
    t = z @ strength
    for count in (1, 5, 11, 19, 20):
        kept = select(z.T @ z, z.T @ t, count)
        assert int(kept.sum()) == count
        assert strength[kept].abs().min() >= strength[~kept].abs().max() - 1e-9 if count < 20 else True


def test_lasso_is_scikit_learns_on_the_contributions_themselves():
    from sklearn.linear_model import Lasso

    z = torch.randn(400, 20).double()
    t = z @ torch.linspace(0.05, 2, 20).double() + 0.1 * torch.randn(400).double()
    kept = select(z.T @ z, z.T @ t, 8)
    low, high, found = 1e-3, 10.0, 0
    while found != 8:
        middle = (low + high) / 2
        direct = Lasso(alpha=middle, fit_intercept=False).fit(z.numpy(), t.numpy()).coef_ != 0
        found = int(direct.sum())
        low, high = (middle, high) if found > 8 else (low, middle)
    assert kept.tolist() == direct.tolist()


def test_lasso_drops_dead_and_repeated_units():
    z = torch.randn(100, 4).double()
    z = torch.cat([z, torch.zeros(100, 1).double(), 0.3 * z[:, :1]], dim=1)
    t = z.sum(1)
    assert select(z.T @ z, z.T @ t, 4).tolist() == [True] * 4 + [False] * 2
    assert select(z.T @ z, z.T @ t, 5).tolist() == [True] * 4 + [
        False,
        True,
    ]  # more than LASSO wants: the larger
    assert int(select(torch.zeros(3, 3).double(), torch.zeros(3).double(), 2).sum()) == 2


def test_least_squares_is_the_least_and_stays_near_where_it_is_free():
    x, w = torch.randn(60, 5).double(), torch.randn(3, 5).double()
    t = x @ torch.randn(3, 5).double().T + torch.tensor([1.0, 2.0, 3.0]) + 0.1 * torch.randn(60, 3).double()
    weight, bias = least_squares(x, t, w, intercept=True)
    full = torch.cat([x, torch.ones(60, 1).double()], dim=1)
    expected = torch.linalg.lstsq(full, t).solution
    torch.testing.assert_close(torch.cat([weight.T, bias[None]]), expected)
    plain, none = least_squares(x, t, w, intercept=False)
    torch.testing.assert_close(plain.T, torch.linalg.lstsq(x, t).solution)
    assert not none.any()
    already = x[:3] @ w.T
    torch.testing.assert_close(least_squares(x[:3], already, w, intercept=False)[0], w)


# -- a network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_exactly_redundant_channel_goes_without_a_trace(norm, bias):
    net = randomised(chain(norm, bias))
    with torch.no_grad():  # channel 4 repeats channel 1, and is read in proportion; channel 2 is dead
        for p in [
            *net[0].parameters(),
            *(net[1].parameters() if norm else ()),
            *(net[1].buffers() if norm else ()),
        ]:
            if p.ndim:
                p[4] = p[1]
                if p is net[0].weight or p is net[0].bias or (norm and p is net[1].bias):
                    p[2] = 0
        if norm:
            net[1].running_mean[2] = 0
        net[3].weight[:, 4] = -0.5 * net[3].weight[:, 1]
    x = images()
    pruned = he2017(net, {"0": 4 / 6}, batches(x), example=x[:1])
    assert pruned.mask["0.weight"].flatten(1).any(1).tolist() == [True, True, False, True, False, True]
    assert pruned.layers[0].error_after < 1e-20
    assert pruned.layers[0].error_before > 1e-3
    fresh = images(seed=9)
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(fresh), net(fresh), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "make", [chain, lambda: chain(norm=False), lambda: chain(bias=False), lambda: Block().double()]
)
def test_errors_fall_and_masked_entries_are_zero(make):
    net, x = randomised(make()), images(200)
    before = copy.deepcopy(net.state_dict())
    pruned = he2017(net, 0.5, batches(x), example=x[:1])
    assert all(layer.error_after <= layer.error_before for layer in pruned.layers)
    assert all(layer.kept * 2 == layer.size for layer in pruned.layers)
    parameters = dict(pruned.model.named_parameters())
    assert all(not bool(parameters[name][~kept].any()) for name, kept in pruned.mask.items())
    assert pruned.mask.fits(pruned.model)
    assert all(
        torch.equal(before[key], value) for key, value in net.state_dict().items()
    )  # the input is untouched
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *pruned.model.modules()]
    )
    assert pruned.model.training == net.training


def test_flattened_channels_are_read_by_columns():
    net, x = randomised(chain()), images(300)
    pruned = he2017(net, {"3": 0.5}, batches(x), example=x[:1])
    assert [(layer.reader, layer.kept) for layer in pruned.layers] == [("7", 2)]
    columns = pruned.mask["7.weight"].any(0).reshape(4, 9)
    assert torch.equal(columns.all(1), pruned.mask["3.weight"].flatten(1).any(1))
    assert torch.equal(columns.all(1), columns.any(1))


def test_later_layers_see_the_original_outputs_and_the_pruned_inputs():
    """Fitting the second layer to the original mends what the first one broke: better than fitting it to itself."""
    net, x = randomised(chain()), images(300)
    both = he2017(net, {"0": 0.5, "3": 0.75}, batches(x), example=x[:1])
    first = he2017(net, {"0": 0.5}, batches(x), example=x[:1])
    alone = he2017(first.model, {"3": 0.75}, batches(x), example=x[:1])  # its own outputs are its target
    with torch.no_grad():
        target = net(x)
        error = [(model(x) - target).square().mean() for model in (both.model, alone.model)]
    assert error[0] < error[1]


def test_the_end_of_a_branch_makes_up_for_its_shortcut():
    net, x = randomised(Block().double()), images(300)
    pruned = he2017(net, 0.5, batches(x), example=x[:1])
    assert [(layer.reader, layer.residual) for layer in pruned.layers] == [("conv2", True), ("conv4", True)]
    assert pruned.skipped.keys() == {"stem"}
    assert "writes them too, after they are first read (a sum, or a gate)" in pruned.skipped["stem"]

    def sums(model):  # of the second block, before its activation
        seen = []
        handles = [m.register_forward_hook(lambda *a: seen.append(a[2])) for m in (model.conv3, model.norm4)]
        inputs = []
        handles.append(model.conv3.register_forward_pre_hook(lambda m, a: inputs.append(a[0])))
        with torch.no_grad():
            model(x)
        for handle in handles:
            handle.remove()
        return inputs[0] + seen[1]

    def error(model):
        return (sums(model) - sums(net)).square().sum() / (
            sums(net) - sums(net).mean((0, 2, 3), keepdim=True)
        ).square().sum()

    # the last error told is that of the sum, on all places nearly that of the sampled ones
    class Uncompensated(Block):
        def forward(self, x):
            x = F.relu(self.stem(x))
            for first, norm, second, last in [
                (self.conv1, self.norm1, self.conv2, self.norm2), (self.conv3, self.norm3, self.conv4, self.norm4)
            ]:  # fmt: skip
                x = F.relu(
                    torch.stack([x, last(second(F.relu(norm(first(x)))))]).sum(0)
                )  # a sum that is not seen
            return self.fc(x.mean((2, 3)))

    other = Uncompensated().double().eval()
    other.load_state_dict(net.state_dict())
    plain = he2017(other, 0.5, batches(x), structure=find_units(net, x[:1]))
    assert [layer.residual for layer in plain.layers] == [False, False]
    assert error(pruned.model) < error(plain.model)


class Branches(nn.Module):
    """One layer read by two, and two that are concatenated before a third."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.last(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)).mean((2, 3))


def test_two_readers_choose_together_and_concatenated_channels_by_turns():
    net, x = Branches().double(), images(300)
    pruned = he2017(net, 0.5, batches(x), example=x[:1])
    assert [(layer.group, layer.reader) for layer in pruned.layers] == [
        ("stem", "a"), ("stem", "b"), ("a", "last"), ("b", "last")
    ]  # fmt: skip
    assert all(layer.error_after <= layer.error_before for layer in pruned.layers)
    dropped = ~torch.cat([pruned.mask[f"{n}.weight"].flatten(1).any(1) for n in "ab"])
    assert int(dropped.sum()) == 4
    assert not bool(pruned.model.last.weight[:, dropped].any())
    assert bool(pruned.model.last.weight[:, ~dropped].flatten(2).any(2).all())


def test_results_print():
    net, x = randomised(Block().double()), images(60)
    text = str(he2017(net, 0.5, batches(x), example=x[:1]))
    assert text.splitlines()[0].split() == [
        "units",
        "of",
        "read",
        "by",
        "kept",
        "error",
        "after",
        "least",
        "squares",
    ]
    assert "conv1     conv2    3 of 6" in text
    assert "left whole: stem: 'conv" in text


class Attention(nn.Module):
    """Units within units: heads, and their dimensions, have the same writer."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 4, 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


def test_heads_and_hidden_units_are_chosen_like_channels():
    net, x = Attention().double().eval(), images(100, (5, 6))
    structure = find_units(net, x[:1])
    heads = next(group.name for group in structure if group.kind == "head")
    for density in (0.5, {heads: 0.5, "up": 0.5}):
        pruned = he2017(net, density, batches(x), structure=structure)
        assert {layer.reader: layer.kept for layer in pruned.layers} == {"out": 2, "down": 5}
        assert all(layer.residual and layer.error_after <= layer.error_before for layer in pruned.layers)
        assert all("head dim" in name for name in pruned.skipped)


def test_what_cannot_be_pruned_is_named():
    net, x = randomised(Block().double()), images(20)
    with pytest.raises(ValueError, match=r"he2017 cannot prune 'stem': 'conv\d' writes them too"):
        he2017(net, {"stem": 0.5}, batches(x), example=x[:1])
    with pytest.raises(ValueError, match=r"density of '\w+' must be in \[0, 1\] \(got 2\)"):
        he2017(net, 2, batches(x), example=x[:1])
    with pytest.raises(ValueError, match="no tensor in scope matches 'stom'"):
        he2017(net, {"stom": 0.5}, batches(x), example=x[:1])
    with pytest.raises(ValueError, match="leaves every unit"):
        he2017(net, 1.0, batches(x), example=x[:1])
    with pytest.raises(ValueError, match=r"needs example= \(one input\), or structure="):
        he2017(net, 0.5, batches(x))
    with pytest.raises(ValueError, match="'batches' yielded nothing"):
        he2017(net, 0.5, iter(()), example=x[:1])
    grouped = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3)).double()
    with pytest.raises(
        ValueError, match=r"can prune nothing of this model: '0': read by '2\.weight': linear layers"
    ):
        he2017(grouped, 0.5, batches(x), example=x[:1])


@pytest.fixture(scope="module")
def digits():
    """A small convolutional network that knows the digits, and validation data."""
    from rewound.tasks.digits import read_digits

    torch.manual_seed(0)
    data = read_digits()
    (x, y), validation = data.train, data.validation
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval(), x, validation


def test_better_than_magnitude_without_retraining(digits):
    net, x, (held_x, held_y) = digits

    def accuracy(model):
        with torch.no_grad():
            return float((model.eval()(held_x).argmax(1) == held_y).double().mean())

    pruned = he2017(net, 0.5, batches(x[:600], 200), example=x[:1])
    structure = find_units(net, x[:1])
    masked = copy.deepcopy(net)
    prune(net, 0.5, criterion="l1", pattern=structure, allocation="uniform").apply_(masked)
    assert accuracy(net) > 0.95
    assert accuracy(pruned.model) > accuracy(masked) + 0.1
    assert accuracy(pruned.model) > accuracy(net) - 0.1
    assert pruned.mask.units == {"0": (8, 16), "3": (16, 32), "7": (16, 32)}


def test_the_compact_network_is_the_pruned_one(digits):
    net, x, (held_x, _) = digits
    pruned = he2017(net, 0.5, batches(x[:400], 200), example=x[:1])
    small = compact(pruned.model.double(), pruned.mask, x[:1].double())
    with torch.no_grad():
        expected = pruned.model.eval()(held_x.double())
        torch.testing.assert_close(small.eval()(held_x.double()), expected, rtol=1e-10, atol=1e-10)
    assert (small[0].out_channels, small[3].in_channels, small[3].out_channels) == (8, 8, 16)
