"""Deep Compression and EIE: gradients of shared values are exact, sizes are those of the formulas, accuracy stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import rewound
from rewound.papers.han2016 import compressed, multiplies, share_weights
from rewound.runtime.codec import huffman
from rewound.runtime.codec.relative import gaps_of, padded
from rewound.tasks.digits import read_digits


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 8))


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 6, 6, generator=generator), torch.randint(8, (16,), generator=generator))
        for _ in range(count)
    ]


class Shared(nn.Module):
    """A weight that is looked up in a trained codebook: what autograd itself makes of shared weights."""

    def __init__(self, places, codes, size):
        super().__init__()
        self.places, self.codes, self.size = places, codes, size

    def forward(self, book):
        return torch.zeros(self.size, dtype=book.dtype).index_put((self.places,), book[self.codes])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_values_train_as_a_codebook_under_autograd_does(kind):
    """In float64: the same loop on a model whose weight is book[codes], with the book as its parameter."""
    model = network().double()
    mask = rewound.prune(model, density=0.4)
    optimizer = OPTIMIZERS[kind](model.parameters())
    rewound.guard(optimizer, model, mask)
    shared = share_weights(optimizer, model, mask, bits=3)
    reference = copy.deepcopy(network().double())
    reference.load_state_dict(model.state_dict())
    books = {}
    for name in mask:
        module = reference.get_submodule(name.rpartition(".")[0])
        shape = module.weight.shape
        book = nn.Parameter(shared.codebooks[name].clone())
        flat = Shared(mask[name].reshape(-1).nonzero()[:, 0], shared.codes[name], mask[name].numel())
        del module.weight
        books[name] = (module, book, flat, shape)
        module.register_parameter("book", book)
    theirs = OPTIMIZERS[kind](reference.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        shared.check()
        for module, book, flat, shape in books.values():
            module.weight = flat(book).view(shape)
        theirs.zero_grad()
        functional.cross_entropy(reference(x.double()), y).backward()
        theirs.step()
        for name, (_, book, _, _) in books.items():
            assert torch.allclose(shared.codebooks[name], book, rtol=1e-9, atol=1e-12), name


def test_the_gradient_of_a_value_is_the_sum_of_its_members_exactly():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mask = rewound.prune(model, density=0.5)
    shared = share_weights(optimizer, model, mask, bits=2)
    before = shared.codebooks["3.weight"].clone()
    model[3].weight.grad = torch.randint(-4, 5, (8, 96)).float() / 1024  # sums of these are exact
    kept, codes = model[3].weight.grad[mask["3.weight"]], shared.codes["3.weight"]
    expected = torch.stack([kept[codes == k].sum() for k in range(len(before))])
    optimizer.step()
    assert torch.equal(shared.codebooks["3.weight"], before - expected)


def test_mean_divides_by_the_members():
    steps = []
    for reduce in ("sum", "mean"):
        torch.manual_seed(0)
        model = nn.Linear(20, 10, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        shared = share_weights(optimizer, model, rewound.prune(model, density=0.5), bits=2, reduce=reduce)
        before = shared.codebooks["weight"].clone()
        model.weight.grad = torch.ones(10, 20)
        optimizer.step()
        steps.append(before - shared.codebooks["weight"])
    assert torch.allclose(steps[0].sum(), torch.tensor(100.0), atol=1e-4)
    assert torch.allclose(steps[1], torch.ones(3)[: len(steps[1])], atol=1e-6)


def test_the_users_gradients_are_back_after_a_step():
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    share_weights(optimizer, model, rewound.prune(model, density=0.5), bits=2)
    model(torch.ones(2, 6)).sum().backward()
    own, value = model.weight.grad, model.weight.grad.clone()
    optimizer.step()
    assert model.weight.grad is own and torch.equal(own, value)


def test_state_from_before_is_shared_too():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    (x, y), *more = batches()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    shared = share_weights(optimizer, model, rewound.prune(model, density=0.5), bits=3)
    for x, y in more:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        shared.check()


def test_an_optimizer_that_moves_members_apart_is_put_back():
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(torch.randn_like(p) * 0.01)

    model = network().to(memory_format=torch.channels_last)
    optimizer = Noisy(model.parameters(), lr=0.1)
    mask = rewound.prune(model, density=0.5)
    rewound.guard(optimizer, model, mask)
    shared = share_weights(optimizer, model, mask, bits=3)
    functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    shared.check()
    assert all(len(p.unique()) <= 8 for name, p in model.named_parameters() if name in mask)
    with torch.no_grad():
        model[3].weight[mask["3.weight"]] += torch.arange(mask.counts["3.weight"])
    with pytest.raises(RuntimeError, match=r"survivors of '3\.weight' left their codebook"):
        shared.check()
    shared.remove()
    assert not optimizer._optimizer_step_pre_hooks.keys() & {handle.id for handle in shared._handles}


def test_bits_are_the_papers_or_ones_own():
    model = network()
    mask = rewound.prune(model, density=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shared = share_weights(optimizer, model, mask)
    assert (
        len(shared.codebooks["0.weight"]) == 54 and len(shared.codebooks["3.weight"]) <= 31
    )  # all 54 have their own
    assert "2 tensors, 822 weights" in repr(shared)
    for bits, said in ((0, "from 1 to 8"), (9, "from 1 to 8"), ({"3.wight": 4}, "nearest: '3.weight'")):
        with pytest.raises(ValueError, match=said):
            share_weights(optimizer, model, mask, bits=bits)
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        share_weights(optimizer, model, mask, reduce="max")
    with pytest.raises(ValueError, match="does not fit"):
        share_weights(optimizer, nn.Linear(2, 2), mask)
    with pytest.raises(TypeError, match="LBFGS"):
        share_weights(torch.optim.LBFGS(model.parameters()), model, mask)
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'3\.weight': shared values need finite weights"):
        share_weights(optimizer, model, mask)


def test_layers_of_nothing_are_left_alone():
    model = network()
    mask = rewound.Mask(
        {"0.weight": torch.zeros(6, 1, 3, 3, dtype=torch.bool), "3.weight": torch.ones(8, 96).bool()}
    )
    mask.apply_(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewound.guard(optimizer, model, mask)
    shared = share_weights(optimizer, model, mask, bits=4)
    functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    shared.check()
    assert len(shared.codebooks["0.weight"]) == 0 and not model[0].weight.any()
    layer = compressed(model, mask, bits=4).layers[0]
    assert (layer.entries, layer.pruned, layer.shared, layer.huffman) == (0, 0, 0, 0)


def test_sizes_are_those_of_the_streams():
    model = nn.Sequential(nn.Linear(300, 100), nn.Linear(100, 10))
    mask = rewound.prune(model, density=0.05)
    mask.apply_(model)
    with pytest.raises(ValueError, match="5 bits name 31 besides zero: share them first"):
        compressed(model, mask)
    share_weights(torch.optim.SGD(model.parameters(), lr=0.1), model, mask)
    found = compressed(model, mask)
    for layer in found.layers:
        weight = dict(model.named_parameters())[layer.name].detach().numpy().reshape(-1)
        places = np.flatnonzero(weight)
        book, codes = np.unique(weight[places], return_inverse=True)
        stored, runs = padded(gaps_of(np.zeros_like(places), places), codes + 1, 5)
        before = np.diff(places, prepend=-1) - 1
        assert layer.entries == len(stored) == len(places) + int((before // 32).sum())
        assert layer.shared == 10 * layer.entries + 32 * len(book)
        assert layer.pruned == 37 * layer.entries
        coded = huffman.encode(stored, len(book) + 1), huffman.encode(runs, 32)
        for one, symbols in zip(coded, (stored, runs)):
            assert np.array_equal(huffman.decode(one), symbols)
        exact = sum(8 * one.bytes for one in coded) + 32 * len(book)
        assert exact - 14 <= layer.huffman <= exact  # bytes are whole in a stream
    assert found.rest == 32 * 110 and found.bits("dense") == 32 * sum(p.numel() for p in model.parameters())
    assert found.ratio("pruned") < found.ratio("shared") < found.ratio("huffman")
    assert "times smaller than dense" in str(found)
    with pytest.raises(ValueError, match="'stage' must be"):
        found.bits("gzip")


def test_multiplications_are_those_of_weights_and_activations_that_are_there():
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    rewound.prune(model, density=0.1).apply_(model)
    x = torch.randn(7, 64).relu()
    found = multiplies(model, x, elements=4)
    hidden = model[:2](x)
    for name, inputs in (("0", x), ("2", hidden)):
        weight = dict(model.named_modules())[name].weight
        useful = sum(int((weight[:, vector != 0] != 0).sum()) for vector in inputs)
        work = found[name]
        assert work.dense == 7 * weight.numel() and work.weights == 7 * int((weight != 0).sum())
        assert work.useful == useful <= work.entries
        assert work.entries / 4 <= work.cycles <= work.lockstep
    assert (found["0"] + found["2"]).dense == found["0"].dense + found["2"].dense
    assert not model[0]._forward_pre_hooks and model.training


def accuracy(model, data) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def test_digits_keep_their_accuracy_at_four_bits():
    data = read_digits()
    train, test = data.train, data.test()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )

    def fit(optimizer, epochs):
        for _ in range(epochs):
            for at in torch.randperm(len(train[0])).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(model(train[0][at]), train[1][at]).backward()
                optimizer.step()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    fit(optimizer, 15)
    dense = accuracy(model, test)
    mask = rewound.prune(model, density=0.1)
    rewound.guard(optimizer, model, mask)
    fit(optimizer, 10)
    pruned = accuracy(model, test)
    for group in optimizer.param_groups:
        group["lr"] = 5e-4
    shared = share_weights(optimizer, model, mask, bits=4)
    fit(optimizer, 4)
    shared.check()
    sizes = compressed(model, mask, bits=4)
    assert pruned > dense - 0.02 and accuracy(model, test) > pruned - 0.015
    assert all(layer.levels <= 15 for layer in sizes.layers)
    assert sizes.ratio() > 18 and sizes.ratio("shared") > 15
