"""The operators of a network, one by one, at any widths: what is timed to know where a network's time goes.

An operator's sizes follow from the cells of its inputs. Axes of which the same share stays are one *variable*: a convolution
has two (what it reads, what it writes), a batch norm one. At given shares the operator is called on tensors of just those
sizes, so that it can be measured by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from rewound.compaction.atoms import Cells
from rewound.compaction.budget import Extents
from rewound.compaction.capture import place
from rewound.compaction.coupling import Coupling
from rewound.compaction.reading import whole_number
from rewound.compaction.values import Value

# What moves no numbers (or hardly any), whatever its sizes.
_FREE = (
    "view reshape _unsafe_view flatten unflatten view_as permute transpose t mT mH movedim moveaxis swapaxes unsqueeze "
    "squeeze slice select split chunk split_with_sizes tensor_split unbind expand expand_as alias detach getitem "
    "narrow dropout feature_dropout alpha_dropout zeros ones full empty arange new_zeros new_ones new_full "
    "new_empty zeros_like ones_like full_like scalar_tensor lift_fresh_copy to _to_copy type_as contiguous"
)
# Where the number of groups stands among the arguments.
_GROUPS = {"conv1d": 6, "conv2d": 6, "conv3d": 6, "convolution": 8, "_convolution": 8, "group_norm": 1}
_GROUPS |= {"conv_transpose1d": 6, "conv_transpose2d": 6, "conv_transpose3d": 6}
_SHAPES = ("layer_norm", "rms_norm", "native_layer_norm")  # argument 1: the last axes of argument 0


@dataclass(frozen=True)
class Sizes:
    """One tensor that an operator reads: sizes, the variable of each axis (-1: none), order of the axes in memory."""

    shape: tuple[int, ...]
    variables: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype

    def at(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the shape with these shares of the variables."""
        return tuple(n if v < 0 else max(1, round(n * shares[v])) for n, v in zip(self.shape, self.variables))


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor, or for a number of groups, among the arguments of an operator."""

    index: int


@dataclass(frozen=True)
class Operator:
    """where: path of the module that runs it. groups: for each number of groups among its arguments, (how many, the variable).
    variables: for each, (an axis of the extents, its whole size). units: for each, in how many steps it can shrink.
    writes: the groups of units along the result's axes, for reports.
    """

    where: str
    target: Any
    arguments: Any
    keywords: Any
    tensors: tuple[Sizes, ...]
    groups: tuple[tuple[int, int], ...]
    variables: tuple[tuple[int, float], ...]
    units: tuple[int, ...]
    writes: frozenset[int]
    device: torch.device

    @property
    def name(self) -> str:
        """As in the graph: ``aten.conv2d.default``."""
        return str(self.target)

    @property
    def key(self) -> str:
        """Operators with the same key take the same time."""
        return repr(
            (self.name, self.arguments, self.keywords, self.tensors, self.groups, self.units, self.device)
        )

    def at(self, shares: Sequence[float]) -> OperatorAt:
        """Return the operator with these shares of its variables."""
        return OperatorAt(self, tuple(shares))

    def volumes(self, shares: np.ndarray) -> np.ndarray:
        """Return [vectors]: how many numbers it reads at shares [vectors, variables], as a share of what it reads whole."""
        whole, found = 0.0, np.zeros(len(shares))
        for t in self.tensors:
            size = float(np.prod(t.shape))
            whole += size
            found += size * np.prod(
                [shares[:, v] for v in t.variables if v >= 0] or [np.ones(len(shares))], axis=0
            )
        return found / max(1.0, whole)


@dataclass(frozen=True)
class OperatorAt:
    """An operator at given sizes, ready to be called."""

    operator: Operator
    shares: tuple[float, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the tensors that it reads."""
        return [sizes.at(self.shares) for sizes in self.operator.tensors]

    @property
    def device(self) -> torch.device:
        return self.operator.device

    def make(self) -> Any:
        """Return a call of it on tensors of these sizes."""
        operator = self.operator
        tensors = [
            _filled(sizes, shape, operator.device) for sizes, shape in zip(operator.tensors, self.shapes)
        ]
        numbers = [max(1, round(n * self.shares[v])) if v >= 0 else n for n, v in operator.groups]

        def real(argument: Any) -> Any:
            if isinstance(argument, _Place):
                return tensors[argument.index] if argument.index >= 0 else numbers[-1 - argument.index]
            if isinstance(argument, (list, tuple)):
                return type(argument)(real(a) for a in argument)
            return argument

        arguments = [real(a) for a in operator.arguments]
        if operator.name.split(".")[1] in _SHAPES:
            arguments[1] = list(arguments[0].shape[-len(arguments[1]) :])
        keywords = {key: real(a) for key, a in operator.keywords.items()}
        return lambda: operator.target(*arguments, **keywords)


def operators_of(coupling: Coupling) -> tuple[Extents, list[Operator]]:
    """Return the operators whose sizes change with the widths of the coupling's groups, and the extents of their axes."""
    extents = Extents([group.size for group in coupling.structure])
    number = np.full(len(coupling.atoms.none()), -1)
    for i, group in enumerate(coupling.structure):
        number[coupling.roots[group.name]] = i
    number[0] = -1
    reader = _Reader(coupling, extents, number)
    return extents, [operator for node in coupling.values if (operator := reader.operator(node)) is not None]


class _Unreadable(Exception):
    """An argument that is neither a tensor with known sizes nor a plain value."""


class _Reader:
    def __init__(self, coupling: Coupling, extents: Extents, number: np.ndarray) -> None:
        self.coupling, self.extents, self.number = coupling, extents, number
        self._axes: dict[int, tuple[Cells, int]] = {}

    def operator(self, node: fx.Node) -> Operator | None:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        short = str(node.target).split(".")[1]
        if short in _FREE.split() or short.removesuffix("_") in _FREE.split():
            return None
        call = _Call(self)
        try:
            arguments = [call.template(a) for a in node.args]
            keywords = {key: call.template(a) for key, a in node.kwargs.items()}
        except _Unreadable:
            return None
        cells = self.coupling.groups.get(node)
        if cells is not None and _GROUPS.get(short, len(arguments)) < len(arguments):
            arguments[_GROUPS[short]] = call.group(len(cells), self.axis(cells))
        if not call.variables:
            return None
        device = next(
            (v.device for n in (node, *node.all_input_nodes) if isinstance(v := n.meta.get("val"), Tensor)),
            None,
        )
        return Operator(
            place(node), node.target, tuple(arguments), keywords, tuple(call.tensors), tuple(call.groups),
            tuple(call.variables.values()), tuple(call.units.values()),
            frozenset(g for v in _each(self.coupling.values[node]) for d in v.dims for g in self.groups_of(d.cells)),
            device or torch.device("cpu"),
        )  # fmt: skip

    def axis(self, cells: Cells) -> int:
        """The number of an axis in the extents; -1 where nothing along it can leave."""
        if not cells.size:
            return -1
        found = self._axes.get(id(cells))
        if found is None:
            columns = self.number[self.coupling.atoms.resolve(cells)]
            axis = -1
            if columns.size and (columns >= 0).any():
                axis = self.extents.add(len(cells), list(columns.T))
            found = self._axes[id(cells)] = (cells, axis)
        return found[1]

    def groups_of(self, cells: Cells) -> set[int]:
        axis = self.axis(cells)
        return set() if axis < 0 else self.extents.groups_of(axis)


class _Call:
    """The arguments of one operator: tensors as their sizes, the rest as it is."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.tensors: list[Sizes] = []
        self.groups: list[tuple[int, int]] = []
        self.variables: dict[Any, tuple[int, float]] = {}  # what is alike -> axis of the extents, whole size
        self.units: dict[Any, int] = {}

    def template(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            value, meta = self.reader.coupling.values.get(argument), argument.meta.get("val")
            if isinstance(value, Value) and isinstance(meta, Tensor):
                self.tensors.append(self._sizes(value, meta))
                return _Place(len(self.tensors) - 1)
            if isinstance(value, (int, float, bool)):
                return value
            raise _Unreadable
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.template(a) for a in argument)
        if isinstance(argument, (fx.GraphModule, Tensor)):
            raise _Unreadable
        return argument

    def group(self, size: int, axis: int) -> _Place:
        self.groups.append((size, self._variable(size, axis)))
        return _Place(-len(self.groups))

    def _sizes(self, value: Value, meta: Tensor) -> Sizes:
        variables = tuple(self._variable(len(dim.cells), self.reader.axis(dim.cells)) for dim in value.dims)
        strides = [whole_number(n) for n in meta.stride()]
        order = tuple(sorted(range(len(strides)), key=lambda k: (-strides[k], k)))
        return Sizes(value.shape, variables, order, meta.dtype)

    def _variable(self, size: int, axis: int) -> int:
        if axis < 0:
            return -1
        alike = self.reader.extents.share(axis)
        self.variables.setdefault(alike, (axis, self.reader.extents.whole(axis)))
        self.units[alike] = gcd(self.units.get(alike, 0), size)
        return list(self.variables).index(alike)


def _filled(sizes: Sizes, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A tensor laid out in memory as the network has it. Ones: no number that a processor is slow with."""
    order = sizes.order
    fill = 1 if sizes.dtype.is_floating_point or sizes.dtype is torch.bool else 0
    stored = torch.full([shape[k] for k in order], fill, dtype=sizes.dtype, device=device)
    return stored.permute([order.index(k) for k in range(len(order))]) if order else stored


def _each(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _each(v)
