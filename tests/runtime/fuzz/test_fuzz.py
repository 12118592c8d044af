"""Nothing that a file may hold crashes the loader: damaged bytes, headers that lie, and the native decoders on their own."""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewound.runtime import file, sections
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import Sparse, sparse

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "src" / "rewound" / "runtime" / "csrc"


def graph() -> Graph:
    """Every code of places and values, in little: a bit map, gaps, indices, halves, floats."""
    generator = np.random.default_rng(0)

    def some(shape, density):
        weight = generator.standard_normal(shape).astype(np.float32)
        weight[generator.random(shape) >= density] = 0
        return sparse(weight)

    weights = {
        "map": some((5, 7), 0.8),
        "gaps": some((7, 40), 0.05),
        "codes": sparse(np.float32([0, 0, 1, 2])[generator.integers(0, 4, (40, 12))]),
        "bias": generator.standard_normal(12).astype(np.float32),
    }
    values = {"x": Value((None, 40)), "a": Value((None, 7)), "b": Value((None, 5)), "d": Value((None, 5))}
    nodes = (
        Node("linear", ("x",), "a", {"weight": "gaps"}, {"activation": ["clamp", 0.0, 6.0]}),
        Node("linear", ("a",), "b", {"weight": "map"}),
        Node("binary", ("b",), "d", {}, {"kind": "mul", "scalar": 2.0}),
    )
    return Graph(values, nodes, ("x",), ("d", "a"), weights, {"keys": ["d", "a"]})


def bits(found: Graph) -> object:
    weights = {
        key: (w.starts.tobytes(), w.places.tobytes(), w.values.tobytes())
        if isinstance(w, Sparse)
        else w.tobytes()
        for key, w in found.weights.items()
    }
    return found.values, found.nodes, found.inputs, found.outputs, found.structure, weights


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of files, none worth a disk's while
    path = tmp_path / "net.engine"
    file.write(graph(), path, values={"gaps": "float16"})
    return path


def outcome(path) -> object:
    """What is read, or None where the file is refused as it should be: by a ValueError with its name."""
    try:
        return bits(file.read(path))
    except ValueError as error:
        return None if str(path) in str(error) else error


def test_every_truncation_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert outcome(path) is None, length


def test_every_damaged_byte_is_refused_or_means_nothing(path):
    content, right, source = path.read_bytes(), outcome(path), random.Random(0)
    lengths = [int.from_bytes(content[16:24], "little")]
    lengths += [len(section.data) for section in sections.read(path)[1].values()]
    harmless = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        found = outcome(path)
        assert found in (None, right), at
        harmless += found is not None
    assert harmless == sum(
        -length % 64 for length in lengths
    )  # the zeros after the header and after each section


def test_bytes_of_sections_that_say_anything(path):
    """Damage with the checksums made right again: the decoders themselves are asked."""
    header, found, _ = sections.read(path)
    parts = {name: replace(section, data=section.data.copy()) for name, section in found.items()}
    source = random.Random(1)
    refused = 0
    for _ in range(600):
        name = source.choice(list(parts))
        data = bytearray(parts[name].data.tobytes())
        for _ in range(source.randint(1, 3)):
            what = source.randrange(4)
            if what == 0 and data:
                data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            elif what == 1 and data:
                data[source.randrange(len(data))] = source.choice((0, 255))
            elif what == 2:
                del data[source.randint(0, len(data)) :]
            else:
                data += bytes(source.randrange(256) for _ in range(source.randint(1, 9)))
        changed = replace(parts[name], data=np.frombuffer(bytes(data), np.uint8))
        sections.write(
            path, header, [changed if part == name else section for part, section in parts.items()]
        )
        refused += outcome(path) is None
    assert refused > 200


ODD = (
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    255,
    2**31,
    2**40,
    2**63,
    2**70,
    -(2**65),
    0.5,
    1e308,
    float("inf"),
    float("nan"),
)
ODD += (
    "",
    "x",
    "float32",
    "codes:1",
    "deltas:16",
    "bitmap",
    "conv",
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    "\u0000",
    "a" * 300,
)


def leaves(value, at=()):
    """Every place in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*at, key))


def test_headers_that_say_anything(path):
    """One to three places of the header hold something odd, or nothing, or each other; all checksums are right."""
    header, found, _ = sections.read(path)
    parts = [replace(section, data=section.data.copy()) for section in found.values()]
    source = random.Random(2)
    refused = 0
    for _ in range(700):
        changed, codecs = copy.deepcopy(header), list(parts)
        for _ in range(source.randint(1, 3)):
            at = source.choice([place for place in leaves(changed) if place])
            holder = changed
            for key in at[:-1]:
                holder = holder[key]
            if source.random() < 0.2:
                del holder[at[-1]]
            else:
                holder[at[-1]] = copy.deepcopy(source.choice(ODD))
        if source.random() < 0.2:
            which = source.randrange(len(codecs))
            codec = source.choice(("bitmap", "deltas:3", "codes:9", "float16", "x", "int64"))
            codecs[which] = replace(codecs[which], codec=codec)
        sections.write(path, changed, codecs)
        refused += outcome(path) is None
    assert refused > 450


def test_tables_that_say_anything(path):
    """The table of sections itself: offsets, lengths, names, with a header checksum that is right."""
    content = path.read_bytes()
    length = int.from_bytes(content[16:24], "little")
    text, source = content[64 : 64 + length], random.Random(3)
    for _ in range(400):
        changed = bytearray(text)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(changed))
            changed[at : at + source.randint(0, 2)] = source.choice(
                (b"9", b"-1", b"", b"[", b"}", b'"', b"null", b"\xff", b"e9")
            )
        rest = bytes(-len(changed) % 64) + content[64 + -(-length // 64) * 64 :]
        size = 64 + len(changed) + len(rest)
        prelude = sections._PRELUDE.pack(sections.MAGIC, 1, zlib.crc32(changed), len(changed), size)
        path.write_bytes(prelude + zlib.crc32(prelude).to_bytes(4, "little") + changed + rest)
        outcome(path)


def test_native_decoders_under_sanitizers(tmp_path):
    """A compiler builds the decoders with address and undefined-behaviour sanitizers; the corpus and 59,000 mutations run."""
    compiler = next(
        found
        for name in (os.environ.get("CXX"), "g++", "clang++", "c++")
        if name and (found := shutil.which(name))
    )
    sources = [HERE / "decode_fuzz.cc", HERE / "replay.cc", CSRC / "decode.cc"]
    flags = "-std=c++20 -g -O1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=undefined".split()
    program = tmp_path / "replay"
    subprocess.run([compiler, *flags, f"-I{CSRC}", *map(str, sources), "-o", str(program)], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # a ptraced process has no leak detection
    ran = subprocess.run(
        [program, HERE / "corpus.hex", "500"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "118 inputs, 59000 mutations" in ran.stdout
