"""Parameters and FLOPs against hand values (trap 20), and the model left as it was found."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rewound.measure.cost import flops, flops_by_weight, parameters, training_flops
from rewound.tasks.models.resnet import cifar_resnet


def two_layers():
    """conv 3 -> 4, 3x3, on 8x8, padded: 64 pixels; conv 4 -> 2, 1x1, stride 2: 16 pixels."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2, bias=False))


EXAMPLE = torch.zeros(5, 3, 8, 8)
FIRST = 2 * 5 * 64 * 4 * (3 * 9)  # 2 x images x pixels x outputs x inputs of each
SECOND = 2 * 5 * 16 * 2 * 4


def test_hand_value_of_two_convolutions():
    assert flops_by_weight(two_layers(), EXAMPLE) == {"0.weight": FIRST, "2.weight": SECOND}
    assert flops(two_layers(), EXAMPLE) == FIRST + SECOND
    assert training_flops(two_layers(), EXAMPLE) == 3 * (FIRST + SECOND)


def test_masks_scale_their_own_layer():
    model = two_layers()
    full = {"0.weight": torch.ones(4, 3, 3, 3).bool(), "2.weight": torch.ones(2, 4, 1, 1).bool()}
    assert flops(model, EXAMPLE, full) == flops(model, EXAMPLE)
    assert parameters(model, full) == parameters(model) == 4 * 27 + 4 + 8
    half = full | {"2.weight": torch.arange(8).view(2, 4, 1, 1) % 2 == 0}
    assert flops(model, EXAMPLE, half) == FIRST + SECOND // 2
    assert training_flops(model, EXAMPLE, half) == 3 * (FIRST + SECOND // 2)
    assert parameters(model, half) == parameters(model) - 4
    assert flops(model, EXAMPLE, {n: torch.zeros_like(m) for n, m in full.items()}) == 0


def test_masks_must_fit():
    with pytest.raises(ValueError, match=r"'3\.weight', which is no parameter"):
        flops(two_layers(), EXAMPLE, {"3.weight": torch.ones(1).bool()})
    with pytest.raises(ValueError, match=r"has shape \(2, 4\), not \(2, 4, 1, 1\)"):
        parameters(two_layers(), {"2.weight": torch.ones(2, 4).bool()})


def test_agrees_with_the_counter_of_torch():
    model, x = cifar_resnet(20), torch.zeros(2, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(x)
    assert flops(model, x) == counter.get_total_flops()
    assert sum(flops_by_weight(model, x).values()) == counter.get_total_flops()
    assert "" not in flops_by_weight(model, x)  # every convolution is known by its weight


class Looks(nn.Module):
    """Looks at values, draws, counts and caches: cannot run on shapes alone."""

    def __init__(self):
        super().__init__()
        self.first, self.rnn, self.drop = nn.Linear(3, 2), nn.LSTM(2, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(1))
        self.cache = None

    def forward(self, x):
        self.calls += 1
        self.cache = self.norm(self.first(x))
        return self.rnn(self.drop(self.cache + torch.randn(1)))[0] if x.sum() >= 0 else x


@pytest.mark.parametrize(
    "make", [Looks, lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))]
)
def test_the_model_is_left_as_found(make):
    model, x = make(), torch.zeros(5, 3)
    next(model.children()).eval()  # one part frozen by its user
    next(model.parameters()).grad = torch.ones(2, 3)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    attributes = [dict(vars(m)) for m in model.modules()]
    assert flops(model, x) >= 2 * 5 * 3 * 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(next(model.parameters()).grad, torch.ones(2, 3))
    assert all(vars(m).keys() == a.keys() and all(vars(m)[k] is a[k] for k in a)
               for m, a in zip(model.modules(), attributes))  # fmt: skip


def test_recurrent_and_attention_weights_are_told_apart():
    steps, batch = 3, 5
    for model in (nn.LSTM(2, 4), Looks().rnn):
        counts = flops_by_weight(model, torch.zeros(steps, batch, 2))
        assert counts == {"weight_ih_l0": 2 * 15 * 16 * 2, "weight_hh_l0": 2 * 15 * 16 * 4}
    # where values are looked at, the same numbers from a real run: five steps of one
    counts = flops_by_weight(Looks(), torch.zeros(5, 3))
    assert counts == {
        "first.weight": 60, "rnn.weight_ih_l0": 2 * 5 * 16 * 2, "rnn.weight_hh_l0": 2 * 5 * 16 * 4,
    }  # fmt: skip
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(2, 3, 8)
    counts = flops_by_weight(attention, (x, x, x))
    assert counts["in_proj_weight"] == 2 * 6 * 24 * 8
    assert counts["out_proj.weight"] == 2 * 6 * 8 * 8
    assert counts[""] == 2 * (
        2 * 2 * 2 * 3 * 3 * 4
    )  # q k^T and its product with v: batch x heads x 3 x 3 x 4


def test_tied_weights_count_once_as_parameters_and_at_every_use_as_work():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    kept = torch.eye(4).bool()
    assert parameters(model) == 16
    assert parameters(model, {"0.weight": kept, "2.weight": kept}) == 4
    assert flops_by_weight(model, torch.zeros(1, 4)) == {"0.weight": 2 * 32}
    assert flops(model, torch.zeros(1, 4), {"2.weight": kept}) == 16


def test_keyword_arguments_and_casts():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3))

        def forward(self, *, x):
            return x.bfloat16() @ self.weight.bfloat16().t()

    assert flops_by_weight(Named(), {"x": torch.zeros(5, 3)}) == {"weight": 60}


def test_attention_counts_also_where_the_model_must_be_run():
    class Looks(nn.Module):
        def forward(self, x):
            if float(x.sum()) < 0:  # shapes alone cannot say
                raise AssertionError
            return nn.functional.scaled_dot_product_attention(x, x, x)

    # 2 heads, 5 x 5 scores of 4 products each, and as many products with the values: 400 multiply-adds
    assert flops(Looks(), torch.ones(1, 2, 5, 4)) == 2 * 400
