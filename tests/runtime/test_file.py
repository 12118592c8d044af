"""An engine's file: what is written is read; whatever is not of rewound, of this version and whole is refused by name."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest

from rewound.runtime import file, sections
from rewound.runtime.codec import native as native_decoders
from rewound.runtime.codec import values
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import Sparse, sparse


def small_graph() -> Graph:
    """A convolution and a linear layer, one weight sparse, one of few values, a clamp up to infinity."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((6, 3, 3, 3)).astype(np.float32)
    kernel[generator.random(kernel.shape) > 0.3] = 0
    matrix = np.float32([0, 0, 0, 0.5, -0.25])[generator.integers(0, 5, (4, 6))]
    convolution = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    convolution["activation"] = ["clamp", 0.0, float("inf")]
    return Graph(
        {
            "x": Value((None, 3, 5, 5)),
            "a": Value((None, 6, 5, 5)),
            "b": Value((None, 6)),
            "y": Value((None, 4)),
        },
        (
            Node("conv", ("x",), "a", {"weight": "0.weight", "bias": "0.bias"}, convolution, "0"),
            Node("reduce", ("a",), "b", {}, {"kind": "mean", "axes": [2, 3], "keepdim": False}, "pool"),
            Node("linear", ("b",), "y", {"weight": "1.weight"}, {}, "1"),
        ),
        ("x",),
        ("y",),
        {
            "0.weight": sparse(kernel),
            "0.bias": generator.standard_normal(6).astype(np.float32),
            "1.weight": sparse(matrix),
        },
        ["y", {"more": None}],
    )  # fmt: skip


def same(a: Graph, b: Graph) -> bool:
    """Whether two graphs are the same to the bit."""
    if (a.values, a.nodes, a.inputs, a.outputs, a.structure) != (
        b.values,
        b.nodes,
        b.inputs,
        b.outputs,
        b.structure,
    ):
        return False
    return a.weights.keys() == b.weights.keys() and all(
        bits(a.weights[k]) == bits(b.weights[k]) for k in a.weights
    )


def bits(weight) -> tuple:
    if isinstance(weight, Sparse):
        return weight.shape, weight.starts.tobytes(), weight.places.tobytes(), weight.values.tobytes()
    return weight.shape, weight.dtype, weight.tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.engine"


def rewritten(path, change) -> None:
    """Change a file's header as a stranger would who computes checksums."""
    header, found, _ = sections.read(path)
    header, found = change(header, found) or (header, found)
    copies = [replace(section, name=name, data=section.data.copy()) for name, section in found.items()]
    sections.write(path, header, copies)


# -- there and back -------------------------------------------------------------------------------------------


def test_a_graph_comes_back(path):
    graph = small_graph()
    contents = file.write(graph, path, notes={"batch": [1, None]})
    assert same(file.read(path), graph)
    assert contents == file.describe(path)
    assert contents.notes == {"batch": [1, None]} and contents.bytes == path.stat().st_size
    assert "0.weight" in str(contents) and contents.away == 0


@pytest.mark.parametrize("spelling", ["bfloat16", "float16", "codebook:4"])
def test_values_are_rounded_where_layers_read_them(path, spelling):
    graph = small_graph()
    contents = file.write(graph, path, values=spelling)
    back = file.read(path)
    kept = graph.weights["0.weight"]
    assert np.array_equal(back.weights["0.weight"].values, values.round_to(kept.values, spelling))
    assert bits(back.weights["0.bias"]) == bits(graph.weights["0.bias"])
    assert bits(back.weights["1.weight"]) == bits(
        graph.weights["1.weight"]
    )  # two values: exact in any of these
    assert contents.rows[0].codecs[0] == {"codebook:4": "codes:2"}.get(spelling, spelling)


@pytest.mark.parametrize("simple", [True, False])
def test_a_converted_network_computes_the_same_to_the_bit(path, simple):
    """Embedding, attention, norms, an operator that runs in torch, a dict of outputs; a pruned ResNet block beside it."""
    import torch
    from torch import nn

    from rewound.runtime import reference
    from rewound.runtime.convert import convert
    from rewound.runtime.simplify import simplify
    from rewound.tasks.models.resnet import cifar_resnet

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")

        def forward(self, ids):
            hidden = self.layer(self.table(ids))
            return {"mean": hidden.mean(1), "sums": hidden.cumsum(1)}

    images = cifar_resnet(8, width=4).eval()
    with torch.no_grad():
        for p in images.parameters():
            if p.ndim == 4:
                p *= torch.rand(p.shape) < 0.2
    for model, example in (
        (images, torch.randn(2, 3, 32, 32)),
        (Encoder().eval(), torch.randint(50, (2, 5))),
    ):
        graph = convert(model, example)
        graph = simplify(graph) if simple else graph
        file.write(graph, path)
        back = file.read(path)
        assert (back.nodes, back.values, back.structure) == (graph.nodes, graph.values, graph.structure)
        for found, expected in zip(*(reference.run(g, [example.numpy()]) for g in (back, graph))):
            assert np.array_equal(found, expected)


def test_values_by_name(path):
    graph = small_graph()
    contents = file.write(graph, path, values={"0.weight": "float16"})
    assert [row.codecs[0] for row in contents.rows] == ["float16", "float32", "codes:1"]
    with pytest.raises(ValueError, match=r"names '2\.weight', and the graph has no such weight"):
        file.write(graph, path, values={"2.weight": "float16"})
    with pytest.raises(ValueError, match="'values' must be"):
        file.write(graph, path, values="int8")


def test_density_after_rounding_is_told(path):
    graph = small_graph()
    tiny = np.full((4, 6), 1e-9, np.float32)
    tiny[0, 0] = 1
    graph = replace(graph, weights={**graph.weights, "1.weight": sparse(tiny)})
    contents = file.write(graph, path, values="float16")
    assert contents.away == 23 and contents.rows[2].kept == 1
    assert file.read(path).weights["1.weight"].density == 1 / 24
    assert file.describe(path).away == 23


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e-42])
def test_odd_numbers_are_kept(path, odd):
    graph = small_graph()
    kept = graph.weights["0.weight"]
    numbers = kept.values.copy()
    numbers[3] = odd
    graph = replace(graph, weights={**graph.weights, "0.weight": replace(kept, values=numbers)})
    file.write(graph, path)
    assert same(file.read(path), graph)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_layers_of_zeros_and_of_none(path, fill):
    graph = small_graph()
    graph = replace(graph, weights={**graph.weights, "1.weight": sparse(np.full((4, 6), fill, np.float32))})
    file.write(graph, path)
    assert same(file.read(path), graph)


def test_dense_arrays_are_views_of_the_file(path):
    graph = small_graph()
    array = np.arange(1, 25, dtype=np.float32).reshape(4, 6) ** 3
    graph = replace(graph, weights={**graph.weights, "1.weight": np.tile(array, (1, 1))})
    file.write(graph, path)
    back = file.read(path).weights["1.weight"]
    assert not back.flags.writeable and not back.flags.owndata and back.ctypes.data % 64 == 0


def test_numpy_alone_reads_the_same(path, monkeypatch):
    graph = small_graph()
    file.write(graph, path, values="codebook:4")
    native = file.read(path)
    for name in ("decode_bitmap", "decode_deltas", "decode_codes"):
        assert getattr(native_decoders, name) is not None
        monkeypatch.setattr(native_decoders, name, None)
    assert same(file.read(path), native)


def test_no_torch_is_needed(path):
    file.write(small_graph(), path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from rewound.runtime import file; print(len(file.read({str(path)!r}).nodes))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "3\n"
    )


def test_resnet_50_is_small_and_quick(path):
    """Of its sizes: 25.5 million weights, a tenth of them kept at random places."""
    generator = np.random.default_rng(0)
    layers = [(64, 576, 12), (256, 1152, 16), (512, 2304, 10), (512, 4608, 4), (2048, 1024, 2)]
    weights, size = {}, 0
    for out, row, count in layers:
        for layer in range(count // 4 or 1):
            matrix = np.zeros((out, row), np.float32)
            kept = generator.random(matrix.shape) < 0.1
            matrix[kept] = generator.standard_normal(int(kept.sum()))
            weights[f"{out}x{row}.{layer}"] = sparse(matrix)
            size += matrix.size
    graph = Graph({"x": Value((None, 1))}, (), ("x",), ("x",), weights)
    contents = file.write(graph, path)
    assert (
        contents.bytes < 0.49 * size
    )  # 4.9 bits a place and 32 a value: 12 MB for ResNet-50, whose bar is 16
    assert file.write(graph, path, values=dict.fromkeys(weights, "codebook:16")).bytes < 0.13 * size


# -- writing --------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(path, monkeypatch):
    graph = small_graph()
    file.write(graph, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        file.write(replace(graph, structure="other"), path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_what_is_no_json_is_not_written(path):
    graph = small_graph()
    odd = replace(graph.nodes[1], attributes={"axes": np.int64(2)})
    with pytest.raises(TypeError, match=r"node 'b' \(reduce\) holds .*int64"):
        file.write(replace(graph, nodes=(graph.nodes[0], odd, graph.nodes[2])), path)
    with pytest.raises(TypeError, match=r"weight '0\.bias' cannot be written: arrays of float32"):
        file.write(replace(graph, weights={**graph.weights, "0.bias": np.zeros(6, complex)}), path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        file.write(graph, path.parent / "no" / "net.engine")
    assert not path.exists()


# -- refusing -------------------------------------------------------------------------------------------------


def refused(path) -> str:
    with pytest.raises(ValueError) as caught:
        file.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_foreign_files_are_refused(path):
    for content, said in (
        (b"", "it is empty"),
        (b"PK\x03\x04 a zip", "begins with b'PK"),
        (b"\x89PNG\r\n\x1a\n", "is not an engine's file"),
        (b"x" * 1000, "is not an engine's file"),
        (sections.MAGIC, "is truncated"),
        (sections.MAGIC.replace(b"\r\n", b"\n") + bytes(99), "is not an engine's file"),
    ):
        path.write_bytes(content)
        assert said in refused(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        file.read(path.parent)


def test_later_versions_are_named(path):
    file.write(small_graph(), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 8, 7)
    struct.pack_into("<I", content, 60, zlib.crc32(content[:60]))
    path.write_bytes(content)
    assert "is of format 7, and this version of rewound reads formats up to 1" in refused(path)


def test_the_damaged_section_is_named(path):
    file.write(small_graph(), path)
    content = path.read_bytes()
    _, found, _ = sections.read(path)
    for name, section in found.items():
        at = content.index(section.data.tobytes())
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert f"is damaged: section {name!r}" in refused(path)
    path.write_bytes(content)


def test_truncated_and_prolonged_files_are_named(path):
    file.write(small_graph(), path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert f"is truncated: it has {len(content) - 1:,} bytes of {len(content):,}" in refused(path)
    path.write_bytes(content + b"\0")
    assert "has something appended" in refused(path)


def test_a_header_length_is_bounded_before_anything_is_allocated(path):
    file.write(small_graph(), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 16, 1 << 60)
    struct.pack_into("<I", content, 60, zlib.crc32(content[:60]))
    path.write_bytes(content)
    assert "asks for a header of" in refused(path)


def header_with(path, text: bytes) -> None:
    prelude = sections._PRELUDE.pack(sections.MAGIC, 1, zlib.crc32(text), len(text), 64 + len(text))
    path.write_bytes(prelude + struct.pack("<I", zlib.crc32(prelude)) + text)


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"sections": 3}', b'{"sections": {"a": 1}}', b'{"sections": {"a": ["x", 0, 64, 0]}}',
     b'{"sections": {"a": ["x", -64, 0, 0]}}', b'{"sections": {"a": ["x", 0.0, 0, 0]}}', b'{"sections": {}}', b"[" * 100_000,
     b'{"sections": {}, "weights": {}}', b'{"sections": {}, "weights": {}, "graph": {}}'],
)  # fmt: skip
def test_headers_that_are_none_are_refused(path, text):
    header_with(path, text)
    refused(path)


def changes():
    """What a stranger may write into a header whose checksums are right."""

    def weights(key, row):
        return lambda header, found: header["weights"].update({key: row})

    def section(name, **fields):
        return lambda header, found: found.update({name: replace(found[name], **fields)})

    def graph(field, value):
        return lambda header, found: header["graph"].update({field: value})

    yield "too much memory", weights("0.weight", ["sparse", [1 << 40, 27], 38, 0])
    yield "more memory than any", weights("0.weight", ["sparse", [1 << 60, 1 << 60], 38, 0])
    yield "a negative size", weights("0.weight", ["sparse", [-6, 3, 3, 3], 38, 0])
    yield "a size that is none", weights("0.weight", ["sparse", [6.0, 3, 3, 3], 38, 0])
    yield "a true size", weights("0.weight", ["sparse", [True, 3, 3, 3], 38, 0])
    yield "a row too long", weights("0.weight", ["sparse", [1, 1 << 33], 38, 0])
    yield "other counts", weights("0.weight", ["sparse", [6, 3, 3, 3], 37, 0])
    yield "more than all", weights("0.weight", ["sparse", [6, 3, 3, 3], 163, 0])
    yield "another form", weights("0.weight", ["shallow", [6, 3, 3, 3], 38, 0])
    yield "another shape", weights("0.weight", ["sparse", [6, 3, 3, 4], 38, 0])
    yield "an array of gaps", weights("0.weight", ["dense", [6, 3, 3, 3], 38, 0])
    yield "a scalar of rows", weights("0.weight", ["sparse", [], 1, 0])
    yield "no weights", lambda header, found: header.update({"weights": {}})
    yield "weights in a list", lambda header, found: header.update({"weights": []})
    yield "another weight", weights("2.weight", ["dense", [3], 3, 0])
    yield "another code", section("0.weight/places", codec="deltas:99")
    yield "code of values", section("0.weight/values", codec="codes:3")
    yield "code 5", section("1.weight/values", codec="codes:5")
    yield "zeros among survivors", section("0.weight/values", data=np.zeros(4 * 38, np.uint8))
    yield (
        "no codebook",
        lambda header, found: (header, {k: v for k, v in found.items() if "codebook" not in k}),
    )
    yield "no places", lambda header, found: (header, {k: v for k, v in found.items() if "places" not in k})
    yield (
        "no values",
        lambda header, found: (header, {k: v for k, v in found.items() if k != "0.weight/values"}),
    )
    yield "short codebook", section("1.weight/codebook", data=np.zeros(3, np.uint8))
    yield "values in a list", graph("values", [])
    yield "a value of text", graph("values", {"x": ["5", "float32"]})
    yield "nodes of nothing", graph("nodes", [[]])
    yield "an unknown operator", graph("nodes", [["conv9", ["x"], "y", {}, {}, ""]])
    yield "a missing weight", graph("nodes", [["conv", ["x"], "y", {"weight": "w"}, {}, ""]])
    yield "inputs of numbers", graph("inputs", [1])
    yield "outputs of nothing", graph("outputs", ["z"])


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in changes()])
def test_headers_that_say_anything_are_refused(path, change):
    graph = small_graph()
    assert len(graph.weights["0.weight"].values) == 38
    file.write(graph, path)
    rewritten(path, change)
    assert "holds no sound engine" in refused(path)


def test_the_header_is_json_that_says_its_byte_order(path):
    file.write(small_graph(), path)
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content, 16)
    header = json.loads(content[64 : 64 + length])
    assert header["byte order"] == "little" and header["written by"].startswith("rewound ")
    assert all(row[1] % 64 == 0 for row in header["sections"].values())
