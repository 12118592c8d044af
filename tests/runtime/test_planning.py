"""Layouts, geometries, memory and plans, by what they promise and without running anything."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewound.runtime import _native
from rewound.runtime.graph import Graph, Node, Value, rounded
from rewound.runtime.planning import tune
from rewound.runtime.planning.emit import plan
from rewound.runtime.planning.geometry import Geometries, steps_of
from rewound.runtime.planning.groups import Groups, zones_of
from rewound.runtime.planning.layout import Form, View, array_of_user, atoms_of, laid_out
from rewound.runtime.planning.liveness import Life, offsets
from rewound.runtime.planning.segments import segments
from rewound.runtime.planning.tune import tuned


def places(view: View) -> np.ndarray:
    """Return where each element of a view stands in its array."""
    start, steps, _ = steps_of(view, None)
    grid = np.indices(view.shape)
    return start + sum(g * s for g, s in zip(grid, steps))


def test_views_of_an_array_are_numpys() -> None:
    array = np.arange(2 * 3 * 4)
    view = array_of_user("input", 0, (2, 3, 4))
    grid = array.reshape(2, 3, 4)
    assert np.array_equal(places(view), grid)
    assert np.array_equal(places(view.permuted([2, 0, 1])), grid.transpose(2, 0, 1))
    assert np.array_equal(places(view.sliced(1, 1, 2).sliced(2, 1, 2, 2)), grid[:, 1:3, 1:4:2])
    assert np.array_equal(places(view.split([[2], [3], [2, 2]])), grid.reshape(2, 3, 2, 2))
    merged = view.merged([2, 1])
    assert merged is not None and np.array_equal(places(merged), grid.reshape(6, 4))
    assert view.permuted([1, 0, 2]).merged([2, 1]) is None


@given(st.lists(st.integers(1, 6), max_size=5), st.randoms())
def test_atoms_are_the_same_factors_of_both_shapes(old: list[int], random: Any) -> None:
    factors = [f for n in old for f in ([2, n // 2] if n % 2 == 0 else [n])]
    cuts = sorted(random.sample(range(len(factors) + 1), min(2, len(factors) + 1)))
    new = [math.prod(factors[a:b]) for a, b in itertools.pairwise([0, *cuts, len(factors)])]
    found = atoms_of(old, new)
    assert found is not None
    left, right = found
    assert [math.prod(axis) for axis in left] == old and [math.prod(axis) for axis in right] == new
    assert [f for axis in left for f in axis] == [f for axis in right for f in axis]


def test_shapes_without_common_factors_have_no_atoms() -> None:
    assert atoms_of([6, 4], [8, 3]) is None


def test_tokens_stand_with_their_features_as_channels() -> None:
    form = Form((1, 2), (), (0,))
    view = laid_out((11, 4, 6), form)  # tokens, heads, features
    assert (view.buffer.channels, view.buffer.height, view.buffer.width) == (24, 1, 11)
    assert view.form() == form and view.stands(form) and not view.stands(Form((2, 1), (), (0,)))
    flat = view.merged([1, 2])
    assert flat is not None and flat.stands(Form((1,), (), (0,)))
    assert not view.sliced(0, 0, 10).stands(form)
    assert view.sliced(1, 1, 2).span().first == 6


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(1, 100)), max_size=25))
def test_what_lives_at_the_same_time_does_not_overlap(rows: list[tuple[int, int, int]]) -> None:
    lives = {i: Life(first, first + more, floats) for i, (first, more, floats) in enumerate(rows)}
    where, total = offsets(lives)
    for (i, a), (j, b) in itertools.combinations(lives.items(), 2):
        if a.first <= b.last and b.first <= a.last:
            assert where[i] + a.floats <= where[j] or where[j] + b.floats <= where[i]
    assert all(at % 16 == 0 and at + lives[i].floats <= total for i, at in where.items())
    assert total <= sum(-(-life.floats // 16) * 16 for life in lives.values())


# -- plans, recorded ------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for the native module and its Program: keeps the calls."""

    def __init__(self, arena: int = 0, inputs: Any = (), outputs: Any = ()) -> None:
        self.arena, self.inputs, self.outputs = arena, inputs, outputs
        self.values: list[tuple[Any, ...]] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def Program(self, *args: Any) -> Recorder:
        return Recorder(*args)

    def operators(self) -> list[dict[str, Any]]:
        return [{"name": options["name"]} for _, _, options in self.calls]

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **options: Any) -> int:
            if method in ("value", "input", "output", "constant"):
                self.values.append((method, *args))
                return len(self.values) - 1
            self.calls.append((method, args, options))
            return -1

        return call

    def of(self, method: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, options) for name, args, options in self.calls if name == method]


def conv(x: str, y: str, weight: str, stride: int = 1, padding: int = 1, residual: str = "") -> Node:
    attributes = {"stride": [stride] * 2, "padding": [padding] * 4, "dilation": [1, 1], "groups": 1}
    return Node("conv", (x, residual) if residual else (x,), y, {"weight": weight}, attributes)


def graph(
    values: dict[str, tuple[int, ...]], nodes: list[Node], weights: dict[str, tuple[int, ...]]
) -> Graph:
    made = {name: Value((None, *shape)) for name, shape in values.items()}
    outputs = (nodes[-1].output,)
    return Graph(made, tuple(nodes), ("x",), outputs, {k: np.ones(s, np.float32) for k, s in weights.items()})


def recorded(network: Graph, images: int = 1) -> Recorder:
    return plan(network, images, Recorder()).program


CHAIN = graph(
    {"x": (3, 8, 8), "a": (16, 8, 8), "b": (16, 8, 8), "c": (16, 8, 8), "d": (16, 8, 8)},
    [
        conv("x", "a", "first"),
        conv("a", "b", "square"),
        conv("b", "c", "square", residual="a"),
        Node("activation", ("c",), "d", {}, {"activation": ["gelu"]}),
    ],
    {"first": (16, 3, 3, 3), "square": (16, 16, 3, 3)},
)


def test_values_of_one_size_have_one_geometry_with_guards_as_wide_as_the_windows_reach() -> None:
    values = [v for v in recorded(CHAIN).values if v[0] == "value"]
    geometries = {v[3:9] for v in values}
    # images, height, width; rows on whole vectors, no guard between them; lead >= 8; plane 16 + 8 * 8
    assert geometries == {(1, 8, 8, 8, 16, 80)}
    assert {v[9] for v in values} == {80}


@pytest.mark.parametrize(
    ("size", "window", "pitch"),
    [(7, 3, 8), (10, 3, 11), (14, 3, 16), (28, 3, 32), (32, 3, 32), (56, 3, 56), (112, 3, 113), (16, 5, 18)],
)
def test_rows_stand_on_whole_vectors_where_windows_look_one_pixel_aside(
    size: int, window: int, pitch: int
) -> None:
    network = graph(
        {"x": (4, size, size), "y": (5, size, size)},
        [conv("x", "y", "w", padding=window // 2)],
        {"w": (5, 4, window, window)},
    )
    for images in (1, 3):
        values = [v for v in recorded(network, images).values if v[0] == "value"]
        assert {v[6] for v in values} == {pitch}
        if images > 1 and pitch % 8 == 0:
            assert all(v[8] % pitch == 0 for v in values), "rows of all images at multiples of the pitch"


def test_residuals_and_elementwise_results_stand_over_their_input() -> None:
    program = recorded(CHAIN)
    (x, y), options = program.of("conv")[2]
    assert program.values[y] == program.values[options["residual"]] != program.values[x]
    (x, y), _ = program.of("unary")[0]
    assert program.values[x] == program.values[y]
    assert program.arena == 2 * (16 * 80 + 16)  # not one buffer more


def test_unpadded_planes_have_no_guards() -> None:
    network = graph({"x": (4, 7, 7), "y": (5, 7, 7)}, [conv("x", "y", "w", padding=0)], {"w": (5, 4, 1, 1)})
    assert {v[6:8] for v in recorded(network).values if v[0] == "value"} == {(7, 0)}


def test_windows_without_padding_share_the_pitch_of_what_they_read() -> None:
    network = graph({"x": (4, 9, 9), "y": (5, 5, 5)}, [conv("x", "y", "w", padding=0)], {"w": (5, 4, 5, 5)})
    assert {v[4:7] for v in recorded(network).values if v[0] == "value"} == {(9, 9, 9), (5, 5, 9)}


def test_phases_are_made_once_for_all_strided_readers() -> None:
    network = graph(
        {"x": (4, 8, 8), "a": (6, 8, 8), "b": (6, 4, 4), "c": (6, 4, 4)},
        [conv("x", "a", "w"), conv("a", "b", "v", stride=2), conv("a", "c", "v", stride=2, residual="b")],
        {"w": (6, 4, 3, 3), "v": (6, 6, 3, 3)},
    )
    program = recorded(network)
    assert len(program.of("phases")) == 1
    assert len({args[0] for args, _ in program.of("conv")[1:]}) == 1


def test_parts_are_written_into_what_they_are_concatenated_to() -> None:
    network = graph(
        {"x": (4, 8, 8), "a": (16, 8, 8), "b": (8, 8, 8), "c": (24, 8, 8), "d": (3, 8, 8)},
        [
            conv("x", "a", "w"),
            conv("a", "b", "v"),
            Node("concat", ("a", "b"), "c", {}, {"axis": 1}),
            conv("c", "d", "u"),
        ],
        {"w": (16, 4, 3, 3), "v": (8, 16, 3, 3), "u": (3, 24, 3, 3)},
    )
    program = recorded(network)
    assert len(program.of("copy")) == 2  # in and out
    whole = program.values[program.of("conv")[2][0][0]]
    first, second = (program.values[args[1]] for args, _ in program.of("conv")[:2])
    assert first[1] == whole[1] and second[1] == whole[1] + 16 * whole[9]


def test_flattening_planes_without_guards_moves_nothing() -> None:
    nodes = [
        conv("x", "a", "w", stride=4, padding=0),
        Node("reshape", ("a",), "b", {}, {"shape": [None, 24, 16]}),
        Node("permute", ("b",), "c", {}, {"axes": [0, 2, 1]}),
        Node("linear", ("c",), "d", {"weight": "v"}),
    ]
    shapes = {"x": (3, 16, 16), "a": (24, 4, 4), "b": (24, 16), "c": (16, 24), "d": (16, 5)}
    network = graph(shapes, nodes, {"w": (24, 3, 4, 4), "v": (5, 24)})
    program = recorded(network)
    assert [name for name, _, _ in program.calls] == ["phases", "conv", "conv", "copy"]


def test_one_vector_is_multiplied_as_a_vector_and_a_batch_as_pixels() -> None:
    network = graph({"x": (30,), "y": (20,)}, [Node("linear", ("x",), "y", {"weight": "w"})], {"w": (20, 30)})
    assert [name for name, _, _ in recorded(network).calls] == ["copy", "matvec", "copy"]
    program = recorded(network, 16)
    assert "conv" in [name for name, _, _ in program.calls]
    assert {v[3:] for v in program.values if v[0] == "value"} == {(16, 1, 1, 1, 0, 1, 16)}


def test_large_channels_fall_on_all_sets_of_a_cache() -> None:
    network = graph(
        {"x": (4, 32, 32), "y": (5, 32, 32)}, [conv("x", "y", "w", padding=0)], {"w": (5, 4, 1, 1)}
    )
    assert {v[9] for v in recorded(network).values if v[0] == "value"} == {1024 + 16}


# -- cutting --------------------------------------------------------------------------------------------------------------------


def test_torch_nodes_cut_a_graph_into_as_few_parts_as_can_be() -> None:
    def relu(x: str, y: str) -> Node:
        return Node("activation", (x,), y, {}, {"activation": ["relu"]})

    def other(x: str, y: str) -> Node:
        return Node("torch", (x,), y, {}, {"target": "aten.cumsum.default", "arguments": {}})

    nodes = [relu("x", "a"), other("a", "b"), relu("a", "c"), other("c", "d"), relu("b", "e"), relu("d", "f")]
    nodes.append(Node("binary", ("e", "f"), "y", {}, {"kind": "add"}))
    network = graph(dict.fromkeys("xabcdefy", (4,)), nodes, {})
    parts = [[node.output for node in part.graph.nodes] for part in segments(network)]
    assert parts == [["a", "c"], ["b"], ["d"], ["e", "f", "y"]]
    assert [part.graph.outputs for part in segments(network)] == [("a", "c"), ("b",), ("d",), ("y",)]
    assert [part.alone for part in segments(network, {"f"})] == [False, True, True, False, True, False]


@pytest.mark.parametrize("vectors", [True, False])
@given(st.integers(1, 600))
def test_groups_hold_every_image_once(vectors: bool, images: int) -> None:
    cut = list(Groups(vectors, 4).of(images))
    assert sum(size * count - padding for size, count, padding in cut) == images
    assert all(padding < size for size, _, padding in cut)
    assert not any(padding for _, _, padding in cut[:-1])


def test_a_network_ends_in_groups_where_its_planes_are_small() -> None:
    nodes = [
        conv("x", "a", "w"),
        Node("adaptive_pool", ("a",), "b", {}, {"kind": "max", "size": [2, 2]}),
        conv("b", "c", "v"),
        Node("reduce", ("c",), "d", {}, {"kind": "mean", "axes": [2, 3], "keepdim": False}),
        Node("linear", ("d",), "y", {"weight": "u"}),
    ]
    shapes = {"x": (3, 16, 16), "a": (90, 16, 16), "b": (90, 2, 2), "c": (90, 2, 2), "d": (90,), "y": (2,)}
    network = graph(shapes, nodes, {"w": (90, 3, 3, 3), "v": (90, 90, 3, 3), "u": (2, 90)})
    first, second = zones_of(network)
    assert [node.output for node in first.graph.nodes] == ["a", "b"] and first.groups == Groups(False, 1)
    assert [node.output for node in second.graph.nodes] == ["c", "d", "y"]
    assert second.groups == Groups(False, 16)
    assert first.graph.outputs == ("b",) == second.graph.inputs


def test_a_thin_layer_before_a_stride_is_computed_on_phase_planes() -> None:
    nodes = [conv("x", "a", "thin", padding=0), conv("a", "b", "deep", stride=2)]
    shapes = {"x": (2, 8, 8), "a": (12, 8, 8), "b": (12, 4, 4)}
    network = graph(shapes, nodes, {"thin": (12, 2, 1, 1), "deep": (12, 12, 3, 3)})
    rare = np.zeros((12, 2, 1, 1), np.float32)
    rare[::3, 1] = 2.0
    network = rounded(replace(network, weights={**network.weights, "thin": rare}))
    program = recorded(network)
    assert [name for name, _, _ in program.calls] == ["phases", "conv", "conv", "copy"]
    assert program.values[program.of("phases")[0][0][1]][2] == 8  # 2 x 2 places of 2 channels, not of 12


def test_geometries_follow_the_number_of_images() -> None:
    view = laid_out((6,), Form((0,), (), ()))
    assert Geometries([], 1)[view.buffer].stride == 1
    assert Geometries([], 17)[view.buffer].stride == 32


# -- tuning ---------------------------------------------------------------------------------------------------------------------


def test_schedules_are_tried_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "schedules.json"
    found = tuned(CHAIN, 1, _native, path)
    assert set(found) == {0, 1, 2} and all(schedule[0] in (1, 2, 4, 6) for schedule in found.values())
    plan(CHAIN, 1, _native, found)
    monkeypatch.setattr(tune, "_best", None)  # nothing is tried again
    assert tuned(CHAIN, 1, _native, path) == found
    assert [file.name for file in path.parent.iterdir()] == ["schedules.json"]


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": [1, 2]}', '{"a": [1, -2, 3], "b": "c"}'])
def test_a_spoilt_memory_of_schedules_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schedules.json"
    path.write_text(text)
    assert set(tuned(CHAIN, 1, _native, path)) == {0, 1, 2}
    assert len(json.loads(path.read_text())) >= 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert set(tuned(CHAIN, 1, _native, tmp_path / "file" / "schedules.json")) == {0, 1, 2}
