"""A Graph under construction: tensors that depend on the inputs (Live), those that do not (Const), and what rules ask of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewound.runtime import operators
from rewound.runtime.convert.sizes import Axes, Batch, Size, flat, inner, plain, sizes
from rewound.runtime.graph import Graph, Node, Value
from rewound.runtime.weights import Weight

PROBES = (2, 3)  # batches at which constants are computed that are made of the batch's size


class Unknown(Exception):
    """A rule does not know this form of its operator: it runs in torch."""


class Unbatchable(Exception):
    """What depends on the batch here cannot be said for any batch."""


@dataclass(frozen=True)
class Live:
    """A tensor that depends on the inputs. name: of its value. axes: see sizes.py, ``None`` if it has no batch or several
    (``shape`` then tells). dtype: torch's; the value holds booleans and whatever was computed from them as float32."""

    name: str
    axes: Axes | None
    dtype: torch.dtype
    shape: tuple[Size, ...]

    @property
    def laid(self) -> Axes:
        if self.axes is None:
            raise Unknown("a tensor without batch")
        return self.axes


@dataclass(frozen=True)
class Const:
    """A tensor that does not. at: its value at each of PROBES (one tensor if it does not depend on the batch's size). origin:
    the parameter that it was made of."""

    at: tuple[Tensor, ...]
    origin: str = ""

    @property
    def value(self) -> Tensor:
        """The tensor, if it does not depend on the batch."""
        if len(self.at) > 1:
            raise Unknown("a constant made of the batch's size")
        return self.at[0]

    @property
    def shape(self) -> tuple[Size, ...]:
        if len(self.at) == 1:
            return tuple(self.at[0].shape)
        made: list[Size] = []
        for a, b in zip(*(t.shape for t in self.at)):
            if a == b:
                made.append(a)
            elif a % PROBES[0] == 0 and a // PROBES[0] * PROBES[1] == b:
                made.append(Batch(a // PROBES[0]))
            else:
                raise Unbatchable(
                    f"a constant has a size of {a} and {b} at batches of {PROBES[0]} and {PROBES[1]}"
                )
        return tuple(made)

    @property
    def dtype(self) -> torch.dtype:
        return self.at[0].dtype


Tracked = Live | Const


@dataclass
class Builder:
    """images: the batch where it is fixed. ``source`` and ``line`` go into the nodes that are made. parameters: the model's
    names of them, which are preferred for what is made of several tensors."""

    images: int | None
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    line: str = ""
    parameters: set[str] = field(default_factory=set)
    _kept: dict[Any, str] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)

    # -- making nodes -----------------------------------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        weights: Mapping[str, Any] | None = None,
        declared: Value | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node and return the name of its value. weights: role -> key. ``Unknown`` if operators.py refuses it."""
        output = self._free(f"{op}_{len(self.nodes)}")
        node = Node(op, tuple(inputs), output, dict(weights or {}), attributes, self.source)
        values = self.values if declared is None else {**self.values, output: declared}
        try:
            self.values[output] = operators.infer(node, values, self.weights)
        except (ValueError, TypeError, KeyError) as error:
            raise Unknown(str(error)) from error
        self.nodes.append(node)
        return output

    def _free(self, name: str) -> str:
        while name in self.values:
            name += "_"
        return name

    def weight(self, array: Tensor | NDArray[Any], origin: str = "", role: str = "") -> str:
        """Keep an array and return its key: the parameter's name where it has one."""
        identity: Any = None
        if isinstance(array, Tensor):
            identity = (array.data_ptr(), array.dtype, tuple(array.shape), array.stride(), origin)
            if identity in self._kept and array.numel():
                return self._kept[identity]
            self._alive.append(array)  # or its address would be taken by another
            array = to_numpy(array)
        base = key = origin or f"{self.source or 'constant'}.{role or 'constant'}"
        count = 1
        while key in self.weights:
            if same(self.weights[key], array):
                break
            count += 1
            key = f"{base}#{count}"
        self.weights[key] = array
        if identity is not None:
            self._kept[identity] = key
        return key

    def live(self, name: str, axes: Axes, dtype: torch.dtype = torch.float32) -> Live:
        return Live(name, axes, dtype, sizes(axes, self.images))

    def floating(self, x: Live) -> Live:
        """Return a live tensor whose value is float32, whatever torch's dtype."""
        if self.values[x.name].dtype == "float32":
            return x
        x.laid  # noqa: B018  # refuses tensors without batch
        return Live(self.emit("activation", [x.name], activation=["identity"]), x.axes, x.dtype, x.shape)

    # -- axes -------------------------------------------------------------------------------------------------------------------

    def plain(self, x: Any, *ranks: int) -> Live:
        """Return x if it is live, its batch is the first axis and it has one of so many axes."""
        if not isinstance(x, Live) or not plain(x.laid) or (ranks and len(x.laid) not in ranks):
            raise Unknown("the batch is not the first axis")
        return self.floating(x)

    def axis(self, x: Live, axis: int) -> int:
        """Return the value's axis that is torch's axis ``axis``."""
        axes = x.laid
        axis = axis % len(axes)
        if len(axes[axis]) != 1 or axes[axis] == (None,):
            raise Unknown("an axis with the batch in it")
        return 1 + sum(factor is not None for factor in flat(axes[:axis]))

    def rank(self, x: Live) -> int:
        return len(x.laid)

    def reshape(self, x: Live, axes: Axes) -> Live:
        """Return x with the same elements in an image, as other factors."""
        wanted = inner(axes)
        name = x.name
        if inner(x.laid) != wanted:
            name = self.emit("reshape", [self.floating(x).name], shape=[None, *wanted])
        return Live(name, axes, x.dtype, sizes(axes, self.images))

    def permute(self, x: Live, order: Sequence[int]) -> Live:
        """Return x with torch's axes in another order."""
        axes = x.laid
        order = [i % len(axes) for i in order]
        starts = np.cumsum([1] + [sum(f is not None for f in axis) for axis in axes]).tolist()
        moved = [0] + [j for i in order for j in range(starts[i], starts[i + 1])]
        name = x.name
        if moved != sorted(moved):
            name = self.emit("permute", [self.floating(x).name], axes=moved)
        return self.live(name, tuple(axes[i] for i in order), x.dtype)

    def aligned(self, *tensors: Live) -> tuple[list[Live], Axes]:
        """Return live tensors with equally many axes, and the axes of what they broadcast to."""
        rank = max(len(x.laid) for x in tensors)
        made = []
        for x in tensors:
            axes = ((1,),) * (rank - len(x.laid)) + x.laid
            made.append(self.reshape(self.floating(x), axes))
        together: list[tuple[int | None, ...]] = []
        for along in zip(*(x.laid for x in made)):
            wide = {axis for axis in along if axis != (1,)}
            if len(wide) > 1 or (any(None in axis for axis in wide) and (1,) in along):
                raise Unknown("tensors whose batches stand in different axes")
            together.append(wide.pop() if wide else (1,))
        return made, tuple(together)

    # -- constants --------------------------------------------------------------------------------------------------------------

    def settled(self, x: Const, axes: Axes) -> tuple[NDArray[Any], Axes]:
        """Return a constant as an array [1, ...] to go with tensors of ``axes`` (as many or more), and the axes of both
        together. ``Unknown`` where it is not the same for every image."""
        shapes = [t.shape for t in x.at]
        if len(shapes[0]) > len(axes):
            axes = ((1,),) * (len(shapes[0]) - len(axes)) + axes
        lead = len(axes) - len(shapes[0])
        taken: list[Tensor] = []
        together: list[tuple[int | None, ...]] = []
        for probe, tensor in enumerate(x.at):
            images = self.images if self.images is not None else PROBES[probe]
            tensor = tensor.reshape((1,) * lead + tuple(tensor.shape))
            factors: list[int] = []  # of the array, the batch among them as 1
            batch_at = []
            together = []
            for axis, size in zip(axes, tensor.shape):
                if None not in axis:
                    (known,) = axis
                    if len(x.at) > 1 and x.at[0].shape[-1:] != () and self._grows(x, len(together) - lead):
                        raise Unknown("a constant with the batch where the tensor has none")
                    factors.append(size)
                    together.append((size,) if known == 1 else axis)
                    if size not in (1, known) and known != 1:
                        raise Unknown("shapes that do not go together")
                    continue
                together.append(axis)
                if size == 1:
                    factors += [1] * len(axis)
                    if None in axis:
                        batch_at.append(len(factors) - len(axis) + axis.index(None))
                    continue
                wanted = [images if f is None else f for f in axis]
                if math.prod(wanted) != size:
                    raise Unknown("a constant with another batch")
                batch_at.append(len(factors) + axis.index(None))
                factors += wanted
            tensor = tensor.reshape(factors)
            for at in batch_at:
                first = tensor.narrow(at, 0, 1)
                if not torch.equal(first.expand_as(tensor), tensor):
                    raise Unknown("a constant that differs from image to image")
                tensor = first
            taken.append(tensor)
        if any(not torch.equal(taken[0], other) for other in taken[1:]):
            raise Unknown("a constant that depends on the batch's size")
        return self._flat(taken[0], axes), tuple(together)

    @staticmethod
    def _grows(x: Const, axis: int) -> bool:
        return axis >= 0 and x.at[0].shape[axis] != x.at[1].shape[axis]

    @staticmethod
    def _flat(tensor: Tensor, axes: Axes) -> NDArray[Any]:
        factors = flat(axes)
        at = factors.index(None)
        array = to_numpy(tensor)
        return np.ascontiguousarray(np.moveaxis(array, at, 0))

    def made_live(self, x: Const, axes: Axes) -> Live:
        """Return a constant as a value, its size that of ``axes`` where those have the batch."""
        array, together = self.settled(x, axes)
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        key = self.weight(array, x.origin, "constant")
        shape = (self.images, *array.shape[1:])
        name = self.emit("constant", [], {"value": key}, declared=Value(shape))
        wide = [
            tuple(None if f is None else n for f, n in zip(axis, part))
            for axis, part in zip(together, _parts(together, array.shape[1:]))
        ]
        return self.live(name, tuple(wide), x.dtype)

    def graph(self, inputs: Sequence[str], outputs: Sequence[str], structure: Any) -> Graph:
        """Return what the outputs need."""
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if node.output in needed:
                nodes.append(node)
                needed.update(node.inputs)
        nodes.reverse()
        keys = {key for node in nodes for key in node.weights.values()}
        kept: dict[str, Weight] = {key: array for key, array in self.weights.items() if key in keys}
        used = {*inputs, *(node.output for node in nodes)}
        values = {name: value for name, value in self.values.items() if name in used}
        return Graph(values, tuple(nodes), tuple(inputs), tuple(outputs), kept, structure)


def _parts(axes: Axes, shape: Sequence[int]) -> list[tuple[int | None, ...]]:
    """Return sizes in the grouping of axes; shape: without the batch."""
    left = list(shape)
    return [tuple(None if f is None else left.pop(0) for f in axis) for axis in axes]


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array: floats that numpy lacks as float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        raise ValueError("complex numbers: an engine computes in float32")
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.numpy()


def same(a: Any, b: Any) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    )
