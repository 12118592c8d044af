"""Capturing a model's operators: the model is left as it was found, costs no memory, and what fails says what to do."""

from __future__ import annotations

import copy
import inspect
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import rewound
from rewound.compaction.capture import capture, place, source


class Net(nn.Module):
    """A convolution with batch norm, dropout, a counter and a cache: everything that a run might change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last: Tensor | None = None

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        self.calls += 1
        self.last = x
        return self.out(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))) * scale)


EXAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def targets(captured: Any) -> list[str]:
    return [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]


def everything_of(model: nn.Module) -> dict[str, Any]:
    attributes = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            attributes[f"{name}.{key}"] = (
                id(value),
                repr(value) if isinstance(value, int | str | dict) else None,
            )
    state = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return {"attributes": attributes, "state": state, "grads": [p.grad for p in model.parameters()]}


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything_of(model)
    assert after["attributes"].keys() == before["attributes"].keys()
    changed = [k for k, v in after["attributes"].items() if v[0] != before["attributes"][k][0]]
    assert changed == []
    for name, (where, value) in before["state"].items():
        assert after["state"][name][0] == where, f"{name} is another tensor now"
        assert torch.equal(after["state"][name][1], value), f"{name} was changed"
    assert after["grads"] == before["grads"]


def unexported(m: nn.Module, x: Tensor) -> Tensor:
    """Something that torch.export refuses, and that is no decision by the data."""
    return x if x.data_ptr() else -x


class Unexported(Net):
    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return super().forward(x, scale) + unexported(self, self.out.bias)


# ---- untouched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Net, Unexported])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(kind, training):
    model = kind().train(training)
    model.drop.eval()  # modes are kept module by module
    before = everything_of(model)
    captured = capture(model, EXAMPLE)
    assert (captured.recorded is not None) == (kind is Unexported)
    assert_untouched(model, before)
    assert (model.training, model.conv.training, model.drop.training) == (training, training, False)
    assert not model.out.weight.requires_grad or model.out.weight.grad is None


@pytest.mark.parametrize("kind", [Net, Unexported])
def test_it_is_captured_in_evaluation_mode(kind):
    captured = capture(kind().train(), EXAMPLE)
    norm = next(n for n in captured.graph.nodes if "batch_norm" in str(n.target))
    assert norm.args[5] is False  # not training
    assert not any("running" in str(n.target) for n in captured.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("kind", [Net, Unexported])
def test_random_numbers_go_on_as_if_nothing_had_happened(kind):
    model = kind().train()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    capture(model, EXAMPLE)
    found = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(expected[0], found[0])
    assert np.array_equal(expected[1], found[1])
    assert expected[2] == found[2]


@pytest.mark.parametrize("kind", [Net, Unexported])
def test_hooks_run_and_stay(kind):
    model = kind()
    seen = []
    model.conv.register_forward_hook(lambda module, args, result: seen.append("hook"))
    model.out.weight.register_hook(lambda grad: grad * 2)
    before = {name: len(value) for name, value in vars(model.conv).items() if name.endswith("hooks")}
    capture(model, EXAMPLE)
    assert {name: len(value) for name, value in vars(model.conv).items() if name.endswith("hooks")} == before
    seen.clear()
    model(EXAMPLE).sum().backward()
    assert seen == ["hook"]
    assert model.out.weight.grad is not None


def test_what_a_failing_model_had_is_put_back_too():
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            self.kept = x
            raise ZeroDivisionError("in the middle")

    model = Broken().train()
    before = everything_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        capture(model, EXAMPLE)
    assert_untouched(model, before)
    assert model.training


def test_gradients_that_are_there_stay_and_none_are_made():
    model = Net()
    model(EXAMPLE).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    values = {name: grad.clone() for name, grad in grads.items()}
    capture(model, EXAMPLE)
    for name, p in model.named_parameters():
        assert p.grad is grads[name]
        assert torch.equal(p.grad, values[name])


def test_the_cache_of_hugging_face_is_switched_off_meanwhile():
    class Config:
        use_cache = True

    class Cached(Net):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.config.decoder = Config()

        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y, y * 2) if self.config.use_cache or self.config.decoder.use_cache else (y,)

    model = Cached()
    assert len(list(capture(model, EXAMPLE).graph.output_node().args[0])) <= 2  # buffer and result
    assert not any("mul.Tensor" in t and "2" in t for t in targets(capture(model, EXAMPLE)))
    assert model.config.use_cache is True
    assert model.config.decoder.use_cache is True
    assert "use_cache" not in vars(Config())


# ---- memory -------------------------------------------------------------------------------------------------


def test_a_model_on_the_meta_device_costs_no_memory():
    """Ten layers of 40,000 x 40,000: 64 gigabytes, if they were anywhere."""
    with torch.device("meta"):
        layers = [nn.Linear(40_000, 40_000) for _ in range(10)]
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    captured = capture(model, torch.zeros(1, 40_000, device="meta"))
    assert targets(captured).count("aten.linear.default") == 10
    assert all(p.is_meta for p in model.parameters())
    structure = rewound.find_units(model, torch.zeros(1, 40_000, device="meta"))
    assert [group.size for group in structure] == [40_000] * 9


def test_nothing_is_computed_on_the_example():
    """Fake tensors: a convolution of 40 trillion multiply-adds on 34 gigabytes is not run."""
    model = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.Conv2d(512, 512, 3, padding=1))
    used = []
    for module in model:
        module.register_forward_hook(lambda m, a, result: used.append(type(result).__name__))
    capture(model, torch.zeros(1, 1, 1, 1).expand(1, 512, 4096, 4096))
    assert used
    assert "Tensor" not in used


# ---- examples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        EXAMPLE,
        (EXAMPLE,),
        [EXAMPLE],
        (EXAMPLE, torch.tensor(2.0)),
        {"x": EXAMPLE},
        {"scale": torch.tensor(2.0), "x": EXAMPLE},
    ],
    ids=["tensor", "tuple", "list", "two", "keyword", "keywords"],
)
def test_an_example_is_a_tensor_a_tuple_or_keywords(example):
    structure = rewound.find_units(Net(), example)
    assert [group.name for group in structure] == ["conv"]


def test_an_example_may_be_nested():
    class Nested(Net):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            return super().forward(batch["images"][0], batch["scale"])

    example = ({"images": [EXAMPLE, EXAMPLE], "scale": 2.0},)
    assert [group.name for group in rewound.find_units(Nested(), example)] == ["conv"]


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "wrap", [lambda m: m, nn.DataParallel, compiled], ids=["plain", "parallel", "compiled"]
)
def test_wrappers_are_looked_through(wrap):
    model = Net()
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert set(capture(wrap(model), EXAMPLE).tensors.values()) == names


def test_shared_tensors_have_the_first_of_their_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    assert set(capture(Tied(), torch.tensor([[1, 2]])).tensors.values()) == {"embed.weight"}


def test_constants_made_in_the_code_are_kept():
    class Shifted(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])

    constants = capture(Shifted(), EXAMPLE).constants
    assert [value.tolist() for value in constants.values()] == [[1.0, 2.0, 3.0, 4.0]]


# ---- recorded, or refused -----------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_recorded_and_says_so():
    model = Unexported().eval()
    captured = capture(model, EXAMPLE)
    assert captured.program is None
    assert re.match(r"\w+(Error|Exception)?: ", captured.recorded)
    assert {"aten.conv2d.default", "aten.linear.default"} <= set(targets(captured))
    plain = rewound.find_units(Net(), EXAMPLE)
    assert [(g.name, g.size, g.certificate) for g in rewound.find_units(model, EXAMPLE)] == [
        (g.name, g.size, g.certificate) for g in plain
    ]
    mask = rewound.prune(model, 0.5, pattern="channel", example=EXAMPLE)
    small = rewound.compact(model, mask, EXAMPLE)
    assert small.conv.out_channels == 4
    masked = copy.deepcopy(model)
    mask.apply_(masked)
    other = torch.randn(3, 3, 7, 7)
    torch.testing.assert_close(small(other), masked(other), rtol=1e-4, atol=1e-5)


def test_what_leaves_torch_on_its_way_stays():
    """Through numpy the recorder sees nothing: no unit may leave that does not reach the result as a tensor."""

    class Numpy(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x)).relu().mean((2, 3))
            return self.out(torch.from_numpy(x.detach().numpy().copy()))

    structure = rewound.find_units(Numpy(), EXAMPLE)
    assert len(structure) == 0
    assert "nothing depends on it" in structure.fixed["conv.weight", 0]


@pytest.mark.parametrize("decide", ["if", "int", "float"])
def test_a_decision_by_the_data_is_refused_with_its_line(decide):
    class Deciding(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if decide == "if":
                return y if y.sum() > 0 else -y
            return y * range(int(y.abs().sum()) + 1)[-1] if decide == "int" else y * float(y.sum())

    model = Deciding()
    before = everything_of(model)
    with pytest.raises(ValueError, match=rf"depends on its data \(at .*test_capture\.py:\d+: .*{decide}"):
        capture(model, EXAMPLE)
    assert_untouched(model, before)


def test_a_size_that_the_data_decide_is_recorded():
    """How many rows are picked follows from the values; the units are the same for any number."""

    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            return self.down(x[x.sum(1) > -1e9].relu())

    captured = capture(Picking(), torch.randn(4, 3))
    assert "the data decides a size (aten.index.Tensor at compaction/test_capture.py:" in captured.recorded
    assert [group.name for group in rewound.find_units(Picking(), torch.randn(4, 3))] == ["up"]


def test_what_neither_way_works_for_names_both_causes():
    with pytest.raises(RuntimeError) as error:
        capture(Net(), torch.zeros(2, 5, 6, 6))
    text = str(error.value)
    assert "the operators of Net can be neither exported" in text
    assert "nor recorded" in text
    assert text.count("to have 3 channels, but got 5 channels") == 2
    assert "pass as example what the model is really called with" in text


@pytest.mark.parametrize("example", [None, "text", 3])
def test_an_example_that_is_none_is_refused_by_what_the_model_says_of_it(example):
    with pytest.raises(RuntimeError, match="pass as example what the model is really called with"):
        capture(Net(), example)


# ---- where an operator is -----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()  # the line of relu


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.sigmoid()


@pytest.mark.parametrize("wrap", [lambda m: m, compiled], ids=["plain", "compiled"])
def test_place_is_the_path_of_the_module(wrap):
    graph = capture(wrap(Outer()), torch.ones(1, 4)).graph
    places = [(str(n.target).split(".")[1], place(n)) for n in graph.nodes if n.op == "call_function"]
    assert places == [
        ("linear", "blocks.0.inner"),
        ("relu", "blocks.0"),
        ("linear", "blocks.1.inner"),
        ("relu", "blocks.1"),
        ("sigmoid", ""),
    ]


def test_a_module_that_is_called_twice_keeps_its_path():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    graph = capture(Twice(), torch.ones(1, 4)).graph
    found = [place(n) for n in graph.nodes if n.op == "call_function"]
    assert found == ["block.inner", "block"] * 2


def test_source_is_the_users_line_not_that_of_torch():
    graph = capture(Outer(), torch.ones(1, 4)).graph
    lines = [source(n) for n in graph.nodes if n.op == "call_function"]
    assert re.fullmatch(
        r"compaction/test_capture\.py:\d+: return self\.inner\(x\)\.relu\(\)  # the line of relu", lines[0]
    )
    assert lines[0] == lines[1] == lines[2]
    assert lines[-1].endswith(": return x.sigmoid()")


@pytest.mark.skipif("record_stack_traces" not in inspect.signature(make_fx).parameters, reason="of torch 2.9")
def test_the_recorded_graph_knows_lines_too():
    captured = capture(Unexported(), EXAMPLE)
    assert captured.recorded is not None
    found = {str(n.target).split(".")[1]: source(n) for n in captured.graph.nodes if n.op == "call_function"}
    assert re.match(r"compaction/test_capture\.py:\d+: return self\.out\(self\.drop\(", found["conv2d"])
