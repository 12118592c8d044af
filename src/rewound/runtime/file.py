"""An engine in a file: its graph, and its weights in as few bytes as they need. Read without torch, without pickle.

The container (``sections.py``) has the magic, the version, checksums and the table of sections. The header is JSON:

    "written by", "byte order"     rewound and its version; "little"
    "graph"      values, nodes, inputs, outputs, structure: the fields of graph.py
    "notes"      whatever the caller wants to keep beside it (JSON values)
    "weights"    key -> [form, shape, values stored, survivors that were rounded to zero]     (codec/weight.py)

and the sections are each weight's parts: KEY/values, KEY/places, KEY/codebook. JSON is as Python's ``json`` writes it: infinity
(a clamp's bound) is ``Infinity``. Nothing in the file depends on the machine: packing for its kernels happens afterwards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rewound.runtime import operators, sections
from rewound.runtime.codec import values as values_codec
from rewound.runtime.codec import weight as weight_codec
from rewound.runtime.codec.weight import Part, Stored
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import Weight

_ROUNDED = {
    "weight",
    "table",
}  # roles of a node's weights that 'values' is about: not biases, scales, constants
_PARTS = ("values", "places", "codebook")
_FREE = (
    256 << 20
)  # memory that any file may ask for, and as often its own size as the best codes can make of it:
_EXPANSION = 64  # a survivor of one bit and a place of one bit make 8 bytes


@dataclass(frozen=True)
class Row:
    """One weight in a file. dense: its bytes in float32. stored: in the file. codecs: of its parts. kept: values that are
    not zero (all that are stored, for an array). away: survivors that were rounded to zero."""

    key: str
    shape: tuple[int, ...]
    kept: int
    away: int
    codecs: tuple[str, ...]
    stored: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dense(self) -> int:
        return 4 * self.size


@dataclass(frozen=True)
class Contents:
    """What is in a file, without its weights. bytes: of the whole file. ``str()`` is a table."""

    written_by: str
    bytes: int
    rows: tuple[Row, ...]
    notes: Mapping[str, Any]

    @property
    def density(self) -> float:
        """Stored values / weights, after rounding; biases and norms are among them."""
        return sum(row.kept for row in self.rows) / max(1, sum(row.size for row in self.rows))

    @property
    def away(self) -> int:
        """Survivors that were rounded to zero."""
        return sum(row.away for row in self.rows)

    def __str__(self) -> str:
        table = [("weight", "shape", "density", "to zero", "dense", "file", "codes")]
        table += [
            (row.key, "x".join(map(str, row.shape)), f"{row.kept / max(1, row.size):.4f}", f"{row.away:,}")
            + (f"{row.dense:,}", f"{row.stored:,}", " + ".join(row.codecs))
            for row in self.rows
        ]
        dense = sum(row.dense for row in self.rows)
        table.append(
            ("all", "", f"{self.density:.4f}", f"{self.away:,}", f"{dense:,}", f"{self.bytes:,}", "")
        )
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        return "\n".join(
            "  ".join(
                c.rjust(w) if 2 <= i <= 5 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in table
        )


def write(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    values: str | Mapping[str, str] = "float32",
    notes: Mapping[str, Any] | None = None,
) -> Contents:
    """Write a graph to ``path``: the whole file or none of it, whatever happens meanwhile.

    values: how survivors are kept: "float32" (to the bit), "bfloat16", "float16", or "codebook:K", K shared values by
    k-means (Han et al. 2016); or a mapping from keys of ``graph.weights`` to these, "float32" for those not named. A single
    spelling is about weights of convolutions, linear layers and embeddings; biases, norms and constants stay float32. Values
    that round to zero leave the file: compare ``density`` before and after. notes: JSON values to keep beside the graph.

    Places are a bit map or packed gaps, whichever is smaller, weight by weight; weights of few distinct values are stored by
    index, without loss.

    ``ValueError``: values that the code cannot hold (float16 overflows), or a Sparse that is not sound; ``TypeError``: an
    attribute that is no JSON value; ``FileNotFoundError``: no such folder.

    >>> import tempfile, numpy as np
    >>> from rewound.runtime.weights import sparse
    >>> weight = np.zeros((8, 100), np.float32)
    >>> weight[:, ::10] = np.linspace(-1, 1, 80).reshape(8, 10)
    >>> node = Node("linear", ("x",), "y", {"weight": "fc.weight"})
    >>> graph = Graph({"x": Value((None, 100)), "y": Value((None, 8))}, (node,), ("x",), ("y",), {"fc.weight": sparse(weight)})
    >>> path = tempfile.mkdtemp() + "/small.engine"
    >>> print(write(graph, path, values="bfloat16"))
    weight     shape  density  to zero  dense  file  codes
    fc.weight  8x100   0.1000        0  3,200   200  bfloat16 + deltas:4
    all                0.1000        0  3,200   768
    >>> read(path).weights["fc.weight"].density
    0.1
    """
    path = Path(path)
    spelled = _spelled(graph, values)
    written: list[sections.Section] = []
    described: dict[str, Any] = {}
    rows = []
    for key, weight in graph.weights.items():
        try:
            stored = weight_codec.encode(weight, spelled.get(key, "float32"))
        except (ValueError, TypeError) as error:
            raise type(error)(f"weight {key!r} cannot be written: {error}") from error
        described[key] = [stored.form, list(stored.shape), stored.count, stored.away]
        written += [sections.Section(f"{key}/{name}", p.codec, p.data) for name, p in stored.parts.items()]
        rows.append(_row(key, stored))
    header = {
        "written by": f"rewound {version('rewound')}",
        "byte order": "little",
        "graph": _graph_to_plain(graph),
        "notes": _plain(dict(notes or {}), "'notes'"),
        "weights": described,
    }
    size = sections.write(path, header, written)
    return Contents(header["written by"], size, tuple(rows), header["notes"])


def read(path: str | os.PathLike[str]) -> Graph:
    """Return the graph that :func:`write` wrote; every checksum is compared and the graph is checked.

    Arrays that were stored as they are are views of the mapped file: read-only, and of no memory until they are used.

    ``ValueError``, naming the file and what in it, if it is foreign, of a later version, truncated, damaged, or holds a
    graph that is none. ``FileNotFoundError`` where there is none.

    >>> read("no.engine")
    Traceback (most recent call last):
    FileNotFoundError: there is no file 'no.engine'
    """
    path = Path(path)
    header, found, size = sections.read(path)
    weights: dict[str, Weight] = {}
    with _refusing(path):
        stored = dict(_stored(header, found))
        asked = sum(weight_codec.memory(one) for one in stored.values())
        if asked > _FREE + _EXPANSION * size:
            raise ValueError(f"its {size:,} bytes ask for {asked:,} bytes of memory")
        for key, one in stored.items():
            try:
                weights[key] = weight_codec.decode(one)
            except ValueError as error:
                raise ValueError(f"weight {key!r}: {error}") from error
        graph = _graph_from_plain(header["graph"], weights)
        operators.check(graph)
    return graph


def describe(path: str | os.PathLike[str]) -> Contents:
    """Return what is in a file: sizes and densities by weight, and the notes. Reads the header alone.

    ``ValueError`` as :func:`read`, but the weights themselves are not looked at.
    """
    path = Path(path)
    header, found, size = sections.read(path, data=False)
    with _refusing(path):
        rows = tuple(_row(key, stored) for key, stored in _stored(header, found))
        notes = header["notes"]
        _require(isinstance(notes, dict), "'notes' is no object")
        return Contents(str(header["written by"]), size, rows, notes)


def _spelled(graph: Graph, values: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(values, Mapping):
        unknown = sorted(values.keys() - graph.weights.keys())
        if unknown:
            raise ValueError(f"'values' names {unknown[0]!r}, and the graph has no such weight")
        named = dict(values)
    else:
        roles = ((role, key) for node in graph.nodes for role, key in node.weights.items())
        named = {key: values for role, key in roles if role in _ROUNDED}
        values_codec.parse(values)  # also where no weight is concerned
    for spelling in named.values():
        values_codec.parse(spelling)
    return named


def _row(key: str, stored: Stored) -> Row:
    codecs = tuple(stored.parts[name].codec for name in _PARTS[:2] if name in stored.parts)
    taken = sum(len(part.data) for part in stored.parts.values())
    return Row(key, stored.shape, stored.count, stored.away, codecs, taken)


def _stored(header: Mapping[str, Any], found: Mapping[str, sections.Section]) -> Iterator[tuple[str, Stored]]:
    """Yield the weights of a header that may say anything."""
    known = {f"{key}/{name}" for key in header["weights"] for name in _PARTS}
    stray = sorted(found.keys() - known)
    _require(not stray, f"section {stray[0] if stray else ''!r} belongs to no weight")
    for key, (form, shape, count, away) in header["weights"].items():
        numbers = [*shape, count, away]
        sound = (
            form in ("dense", "sparse")
            and all(type(n) is int and n >= 0 for n in numbers)
            and len(shape) <= 32
        )
        sound = sound and (form == "dense" or len(shape) > 0)
        # Whatever is multiplied of sizes later on fits into 64 bits, zeros among them or not.
        sound = sound and math.prod(max(1, n) for n in shape) < 1 << 61 and count <= math.prod(shape)
        _require(sound, f"weight {key!r} is described by {[form, shape, count, away]}")
        parts = {
            name: Part(found[f"{key}/{name}"].codec, found[f"{key}/{name}"].data)
            for name in _PARTS
            if f"{key}/{name}" in found
        }
        _require("values" in parts, f"weight {key!r} has no section {key + '/values'!r}")
        yield key, Stored(form, tuple(shape), count, away, parts)


def _graph_to_plain(graph: Graph) -> dict[str, Any]:
    return {
        "values": {name: [_plain(value.shape, name), value.dtype] for name, value in graph.values.items()},
        "nodes": [
            [node.op, list(node.inputs), node.output, dict(node.weights)]
            + [_plain(dict(node.attributes), f"node {node.output!r} ({node.op})"), node.source]
            for node in graph.nodes
        ],
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "structure": _plain(graph.structure, "the graph's structure"),
    }


def _graph_from_plain(plain: Mapping[str, Any], weights: Mapping[str, Weight]) -> Graph:
    values = {}
    for name, (shape, dtype) in plain["values"].items():
        sizes = all(size is None or (type(size) is int and 0 <= size < 1 << 61) for size in shape)
        _require(sizes and isinstance(dtype, str), f"value {name!r} is described by {[shape, dtype]}")
        values[name] = Value(tuple(shape), dtype)
    nodes = []
    for op, inputs, output, roles, attributes, source in plain["nodes"]:
        sound = isinstance(inputs, list) and isinstance(roles, dict) and isinstance(attributes, dict)
        sound = sound and all(
            isinstance(text, str) for text in (op, output, source, *inputs, *roles.values())
        )
        _require(sound, f"node {output!r} is described by {[op, inputs, roles, source]}")
        missing = [key for key in roles.values() if key not in weights]
        _require(
            not missing,
            f"node {output!r} reads the weight {missing[0] if missing else ''!r}, which is not there",
        )
        nodes.append(Node(op, tuple(inputs), output, roles, attributes, source))
    ends = [plain["inputs"], plain["outputs"]]
    sound = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in ends)
    _require(sound, f"inputs and outputs are {ends}")
    return Graph(values, tuple(nodes), tuple(ends[0]), tuple(ends[1]), weights, plain["structure"])


def _plain(value: Any, where: str) -> Any:
    """Return a JSON value as it will be read back: tuples are lists."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    raise TypeError(
        f"{where} holds {value!r:.80} ({type(value).__name__}), and a file holds JSON values alone"
    )


class _refusing:
    """Turn whatever a header that says anything leads to into a ``ValueError`` with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(
            error,
            (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError),
        ):
            told = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"'{self.path}' holds no sound engine: {told}") from error


def _require(sound: bool, otherwise: str) -> None:
    if not sound:
        raise ValueError(otherwise[:400])
