"""Which rows of which weights write the queries of an attention: followed back through everything that is linear.

Views, rotations and sums on the way are carried out on the numbers of the rows, so that of a matrix for queries, keys and
values only the rows of the queries are found, however the code cuts it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from rewound.compaction.contracts import movement
from rewound.compaction.coupling import Coupling
from rewound.compaction.reading import whole_number
from rewound.compaction.values import Value


class Unclear(ValueError):
    """A graph in which something was not found, and why."""


def short(node: fx.Node) -> str:
    """Return an operator's name without library and overload."""
    name = str(
        getattr(node.target, "__name__", node.target)
        if not str(node.target).startswith("aten.")
        else node.target
    )
    return name.split(".")[1] if name.startswith("aten.") else name


def passes(node: fx.Node) -> bool:
    """Whether the result is the operand itself: a cast, a copy, dropout."""
    return movement.RULES.get(short(node)) is movement.same


def origin(coupling: Coupling, node: Any) -> tuple[str | None, float]:
    """Return (name, a) where a node is a whole parameter w, or a + w with a number; (None, 0) where it is neither."""
    value = coupling.values.get(node) if isinstance(node, fx.Node) else None
    if isinstance(value, Value) and value.origin in coupling.structure.parameters:
        whole = coupling.structure.shapes[value.origin].numel()
        return (value.origin, 0.0) if torch.Size(value.shape).numel() == whole else (None, 0.0)
    if isinstance(node, fx.Node) and node.op == "call_function":
        if passes(node):
            return origin(coupling, node.args[0])
        if short(node) == "add" and not node.kwargs:
            for one, other in (node.args, node.args[::-1]):
                if isinstance(other, (int, float)) and (name := origin(coupling, one)[0]) is not None:
                    return name, float(other)
    return None, 0.0


def writers_of(coupling: Coupling, query: fx.Node) -> dict[str, Tensor]:
    """Return name -> bool, of as many axes as that parameter (each of its size or 1): what must be multiplied by a factor for
    ``query`` to be. ``Unclear`` if something on the way is not linear."""
    tracer = _Tracer(coupling)
    reached = torch.cat([ids.reshape(-1) for ids in tracer.traced(query)]).unique()
    found: dict[str, Tensor] = {}
    for name, axis, first, n in tracer.sources:
        shape = coupling.structure.shapes[name]
        rows = torch.isin(torch.arange(first, first + n), reached)
        rows = rows.reshape([n if k == axis else 1 for k in range(len(shape))])
        found[name] = found[name] | rows if name in found else rows
    return found


_MOVED = """permute transpose swapaxes swapdims t numpy_T matrix_H mT adjoint movedim moveaxis unsqueeze unsqueeze_ squeeze
squeeze_ split split_with_sizes unsafe_split chunk unsafe_chunk unbind select slice flip roll index_select narrow""".split()
_VIEWED = ["view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"]


class _Tracer:
    """Every entry of a value as a number: which row of which parameter writes it. Several tensors of such numbers where several
    do (a sum); -1 where none does."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.sources: list[tuple[str, int | None, int, int]] = []  # (parameter, axis, first number, how many)
        self._seen: dict[fx.Node, list[Tensor]] = {}

    def traced(self, node: Any) -> list[Tensor]:
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return self._parameter(node)
        if node not in self._seen:
            self._seen[node] = self._call(node)
        return self._seen[node]

    def _call(self, node: fx.Node) -> list[Tensor]:
        name = short(node)
        if name == "linear":
            return self._rows(node, -1, (node.args[1], 0), *((b, 0) for b in node.args[2:]))
        if name == "addmm":
            return self._rows(node, -1, (node.args[2], 1), (node.args[0], -1))
        if name in ("matmul", "mm"):
            return self._rows(node, -1, (node.args[1], -1))
        if name in ("conv1d", "conv2d", "conv3d"):
            return self._rows(node, 1, (node.args[1], 0), *((b, 0) for b in node.args[2:3]))
        if name in ("rms_norm", "layer_norm"):
            parts = [part for part in node.args[2:4] if isinstance(part, fx.Node)]
            return self._with_shape(node, [ids for part in parts for ids in self._parameter(part)])
        if name in ("mul", "multiply", "div", "divide", "true_divide"):
            return self._with_shape(node, self._product(node, name))
        if name in ("add", "sub") and len(node.args) > 1:
            return self._with_shape(node, [ids for part in node.args[:2] for ids in self.traced(part)])
        if name == "neg" or passes(node):
            return self.traced(node.args[0])
        if name in ("cat", "concat", "concatenate", "stack"):
            return self._joined(node)
        return [_moved(node, ids) for ids in self._before(node)]

    def _before(self, node: fx.Node) -> list[Any]:
        """The operand of an operator that moves entries; pieces, where that one cuts."""
        operand = node.args[0]
        if short(node) == "getitem":
            assert isinstance(operand, fx.Node)
            return [_moved(operand, ids) for ids in self._before(operand)]
        return self.traced(operand)

    def _product(self, node: fx.Node, name: str) -> list[Tensor]:
        one, other = node.args[:2]
        for each in (one, other) if name.startswith("mul") else (one,):
            if origin(self.coupling, each)[0] is not None:
                return self._parameter(each)
        try:
            return self.traced(one)
        except Unclear:
            if not name.startswith("mul") or not isinstance(other, fx.Node):
                raise
            return self.traced(other)

    def _joined(self, node: fx.Node) -> list[Tensor]:
        parts: Any = node.args[0]
        found = []
        for i, part in enumerate(parts):
            for ids in self.traced(part):
                others = [torch.full(_shape(p), -1) if k != i else ids for k, p in enumerate(parts)]
                found.append(node.target(others, *node.args[1:], **node.kwargs))
        return found

    def _parameter(self, node: Any) -> list[Tensor]:
        """A parameter that is scaled as a whole."""
        name, around = origin(self.coupling, node)
        if name is None or around:
            raise Unclear(
                f"its queries come from {short(node) if isinstance(node, fx.Node) else node}, which is not read"
            )
        return [torch.full(_shape(node), self._number(name, None, 1))]

    def _rows(self, node: fx.Node, axis: int, *weights: tuple[Any, int]) -> list[Tensor]:
        """Numbers of the rows of the weights (and biases) of a linear operator, along ``axis`` of its result."""
        shape = _shape(node)
        found = []
        for weight, along in weights:
            if weight is None:
                continue
            value = self.coupling.values.get(weight)
            if not isinstance(value, Value) or value.origin is None or value.axes[along] is None:
                raise Unclear(f"its queries are written by a computed weight ({short(node)})")
            name, of = value.origin, value.axes[along]
            n = self.coupling.structure.shapes[name][of]
            ids = self._along(weight, name, of, along) + self._number(name, of, n)
            at = axis % len(shape)
            found.append(ids.reshape([-1 if k == at else 1 for k in range(len(shape))]).expand(shape))
        return found

    def _along(self, weight: fx.Node, name: str, of: int | None, along: int) -> Tensor:
        """Which positions of a parameter's axis ``of`` are along an axis of (a part of) it."""
        shape = self.coupling.structure.shapes[name]

        def numbered(node: fx.Node) -> Any:
            if node.op != "call_function":
                return (
                    torch.arange(shape[of])
                    .reshape([-1 if k == of else 1 for k in range(len(shape))])
                    .expand(shape)
                )
            if short(node) == "getitem":
                inner: Any = node.args[0]
                return _moved(inner, numbered(inner.args[0]))[node.args[1]]
            return _moved(node, numbered(node.args[0]))

        ids = numbered(weight).movedim(along, 0)
        return ids.reshape(len(ids), -1)[:, 0]

    def _with_shape(self, node: fx.Node, found: list[Tensor]) -> list[Tensor]:
        return [ids.expand(_shape(node)) for ids in found]

    def _number(self, name: str, axis: int | None, n: int) -> int:
        for known, of, first, _ in self.sources:
            if (known, of) == (name, axis):
                return first
        first = sum(count for *_, count in self.sources)
        self.sources.append((name, axis, first, n))
        return first


def _moved(node: fx.Node, ids: Any) -> Any:
    """Carry out an operator that only moves entries."""
    name = short(node)
    if passes(node):
        return ids
    if name in _VIEWED:
        return ids.reshape(_shape(node))
    if name in ("expand", "expand_as", "broadcast_to"):
        return ids.expand(_shape(node))
    if name == "getitem":
        return ids[node.args[1]]
    if name not in _MOVED or any(isinstance(a, fx.Node) for a in node.args[1:]):
        raise Unclear(f"its queries come out of {name}, which is not read")
    return node.target(ids, *node.args[1:], **node.kwargs)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(whole_number(n)) for n in node.meta["val"].shape)
