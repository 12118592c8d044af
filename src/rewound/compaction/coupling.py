"""Which indices of which axes leave together: read every operator of the graph by its contract, then collect the units.

No operator is guessed at. One without a contract fixes everything it reads, and says so by name and source line.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from rewound.compaction.atoms import Atoms, Cells
from rewound.compaction.capture import Capture, capture, place
from rewound.compaction.contracts import RULES
from rewound.compaction.grouping import grouped
from rewound.compaction.reading import Notes, Reading, Rescale, values_in, whole_number
from rewound.compaction.units import Structure
from rewound.compaction.values import Dead, Dim, Value, plain, plain_value
from rewound.parameters import unwrap_model

_VIEWS = """view reshape _unsafe_view flatten unflatten view_as permute transpose t mT movedim unsqueeze squeeze slice
select split
chunk split_with_sizes unbind expand expand_as alias detach getitem narrow swapaxes""".split()


@dataclass(frozen=True)
class Coupling:
    """What was read of a model: the units, and underneath the cells of every value in the graph (for the surgeon)."""

    structure: Structure
    capture: Capture
    atoms: Atoms
    tensors: Mapping[str, Value]  # parameters and buffers
    values: Mapping[fx.Node, Any]  # node -> Value, or a list of them
    roots: Mapping[str, Cells]  # group -> the atom of each of its units
    groups: Mapping[fx.Node, Cells]  # operators that cut channels into groups -> the cells of the groups
    rescales: Sequence[Rescale] = ()  # operators that a factor repairs when entries leave

    def dead(self, kept: Mapping[str, Tensor]) -> np.ndarray:
        """Return which atoms leave (bool, by number) when of each group named only these units (bool [size]) are kept."""
        dead = self.atoms.none()
        for name, units in kept.items():
            dead[self.roots[name][~units.numpy()]] = True
        return dead


def find_units(model: nn.Module, example: Any) -> Structure:
    """Return all channels, heads and hidden units that can leave ``model``, and why the others cannot.

    The model is run in evaluation mode on fake tensors (``capture``) and left untouched. example: one input as the model is
    called with: a tensor, a tuple (positional) or a dict (keyword arguments). Print the result: it teaches.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> print(find_units(model, torch.zeros(1, 3, 8, 8)))  # doctest: +ELLIPSIS
    1 group of units that can leave; 3,130 weights in all
      8 channels in 1 group: 3,120 weights, 99.7%
    0  8 channels, EXACT
      written by 0.weight[0]; with 0.bias[0], 1.weight[0], 1.bias[0]; read by 4.weight[1] x36; 2 buffers
    what stays, and why
      reads an axis nothing of which can leave (conv2d at modules/conv.py:...)
        0.weight[1]
      is an output of the model
        4.weight[0], 4.bias[0]

    "x36": a channel takes 36 columns of that weight, one for each place of its map.
    """
    return couple(model, example).structure


def couple(model: nn.Module, example: Any, *, dynamic: bool = False, training: bool = False) -> Coupling:
    """Return the units of ``model`` together with everything that was read of its graph; dynamic, training: see ``capture``."""
    model = unwrap_model(model)
    captured = capture(model, example, dynamic=dynamic, training=training)
    reader = _Reader(model, captured)
    reader.read()
    structure, roots = grouped(reader.atoms, reader.tensors, reader.parameters, reader.notes)
    notes = reader.notes
    return Coupling(
        structure, captured, reader.atoms, reader.tensors, reader.values, roots, notes.groups, notes.rescales
    )


class _Reader:
    """Reads the operators of a graph one after the other."""

    def __init__(self, model: nn.Module, captured: Capture) -> None:
        self.atoms, self.notes, self.captured = Atoms(), Notes(), captured
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.used = {captured.tensors.get(node.name) for node in _needed(captured.graph)}
        self.tensors: dict[str, Value] = {}
        self.values: dict[fx.Node, Any] = {}
        self._alike: dict[fx.Node, list[fx.Node]] = {}  # nodes that share memory

    def read(self) -> None:
        """Read the whole graph; what it returns keeps its shape."""
        result = self._graph(self.captured.graph, self.captured.module, None)
        for value in values_in([result]):
            for dim in value.dims:
                self.atoms.fix(dim.cells, "is an output of the model")

    def _graph(self, graph: fx.Graph, module: fx.GraphModule | None, arguments: list[Any] | None) -> Any:
        given = iter(arguments or ())
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node) if arguments is None else next(given)
            elif node.op == "get_attr":
                self.values[node] = self._attribute(node, module)
            elif node.op == "call_function":
                self.values[node] = self._call(node, module)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: self.values[n])
        raise AssertionError("a graph without an output")

    def _placeholder(self, node: fx.Node) -> Any:
        name = self.captured.tensors.get(node.name)
        if name is None:
            value = self._of_meta(node)
            if node.name in self.captured.constants and isinstance(value, Value):
                return Value(value.dims, constant=self.captured.constants[node.name])
            return value
        if name not in self.tensors:
            shape = _shape(node)
            parameter = name in self.parameters
            dead = Dead.ZERO if parameter else Dead.ANYTHING
            dims = tuple(Dim(self.atoms.fresh(n)[:, None], dead) if n > 1 else plain(n) for n in shape)
            # a buffer can be sliced with what it is tied to, and has no say in what is written or read
            self.tensors[name] = Value(dims, name, tuple(range(len(shape))))
            if name not in self.used:
                for dim in dims:
                    self.atoms.fix(
                        dim.cells,
                        "nothing depends on it that the model returns for the example, in evaluation mode",
                    )
        return self.tensors[name]

    def _attribute(self, node: fx.Node, module: fx.GraphModule | None) -> Any:
        found: Any = module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, Tensor):
            return Value(plain_value(tuple(found.shape)).dims, constant=found)
        return found

    def _of_meta(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return plain_value(tuple(whole_number(n) for n in value.shape))
        if isinstance(value, (tuple, list)):
            return [
                plain_value(tuple(whole_number(n) for n in v.shape))
                if isinstance(v, Tensor)
                else whole_number(v)
                for v in value
            ]
        return whole_number(value)

    def _call(self, node: fx.Node, module: fx.GraphModule | None) -> Any:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.target is operator.getitem:
            self._shares(node, node.args[0])
            return arguments[0][arguments[1]]
        name = str(node.target)
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            at = next(i for i, a in enumerate(arguments) if isinstance(a, fx.GraphModule))
            return self._graph(arguments[at].graph, arguments[at], list(arguments[at + 1 :]))
        operands = values_in([arguments, keywords])
        short = name.split(".")[1] if name.startswith("aten.") else name
        reading = Reading(self.atoms, node, short if name.startswith("aten.") else name, self.notes)
        if not isinstance(node.target, torch._ops.OpOverload) or not _returns_tensors(node):
            if short != "_assert_tensor_metadata" and not short.startswith("sym_"):
                reading.untouched(*operands, what="is turned into a number")
            return self._of_meta(node)
        in_place = short.endswith("_") and not short.endswith("__")
        rule = RULES.get(short) or (RULES.get(short[:-1]) if in_place else None)
        if rule is None:
            if any(value.tracked for value in operands):
                reading.untouched(*operands, what=f"is read by {name}, for which there is no contract")
            return self._of_meta(node)
        if not any(value.tracked for value in operands) and not self._makes(short):
            return self._of_meta(node)
        result = rule(reading, *arguments, **{k: v for k, v in keywords.items() if k not in _IRRELEVANT})
        self._check(node, reading, result)
        if short in _VIEWS or in_place:
            self._shares(node, node.args[0])
        if in_place:
            self._written(node, result)
        return result

    @staticmethod
    def _makes(short: str) -> bool:
        return short.removeprefix("new_").split("_")[0] in (
            "zeros",
            "ones",
            "full",
            "empty",
            "expand",
            "repeat",
        )

    def _check(self, node: fx.Node, reading: Reading, result: Any) -> None:
        """A contract that gets a shape wrong is our error: say so rather than prune by it."""
        found = [value.shape for value in values_in([result])]
        if found != reading.shapes:
            raise AssertionError(f"the contract of {node.target} makes {found} of {reading.shapes}")

    def _shares(self, node: fx.Node, base: Any) -> None:
        if isinstance(base, fx.Node):
            family = self._alike.setdefault(base, [base])
            family.append(node)
            self._alike[node] = family

    def _written(self, node: fx.Node, result: Any) -> None:
        """After an operator in place, other views of the same memory hold what was written too."""
        for other in self._alike[node]:
            value = self.values.get(other)
            if isinstance(value, Value) and isinstance(result, Value):
                same = value.shape == result.shape
                dead = (
                    [max(d.dead, r.dead) for d, r in zip(value.dims, result.dims)]
                    if same
                    else [Dead.ANYTHING] * len(value.dims)
                )
                self.values[other] = Value(
                    tuple(d.be(s) for d, s in zip(value.dims, dead)), value.origin, value.axes
                )


_IRRELEVANT = {
    "dtype",
    "device",
    "layout",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "copy",
    "generator",
    "out_dtype",
}


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return all nodes that what the graph returns, or writes in place, depends on."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        in_place = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if node in needed or node.op == "output" or in_place:
            needed.update((node, *node.all_input_nodes))
    return needed


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(whole_number(n) for n in node.meta["val"].shape)


def _returns_tensors(node: fx.Node) -> bool:
    return any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val")))


def kept_rows(atoms: Atoms, cells: Cells, dead: np.ndarray) -> np.ndarray:
    """Return which rows of ``cells`` [n, k] stay when the atoms flagged in ``dead`` (by number) leave: bool [n]."""
    resolved = atoms.resolve(cells)
    if not resolved.size:
        return np.ones(len(cells), dtype=bool)
    return np.asarray(~dead[resolved].any(axis=1))


__all__ = ["Coupling", "couple", "find_units", "kept_rows", "place"]
