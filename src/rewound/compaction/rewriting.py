"""The smaller network as a rewritten graph: for models whose Python code has a size written into it.

``x.reshape(batch, tokens, width)`` after attention insists on the old width, and no attribute can mend it. In the exported
graph every
size is an argument of an operator, so there it can be set. The result computes what the masked model computes, in evaluation
mode and, where that could be captured and proven too (``training.py``), in training mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from rewound.compaction.atoms import Cells
from rewound.compaction.capture import place
from rewound.compaction.coupling import Coupling, kept_rows
from rewound.compaction.queries import short
from rewound.compaction.repairs import Change, lengths, repaired
from rewound.compaction.values import Value
from rewound.parameters import named_modules


@dataclass(frozen=True)
class Code:
    """What is run in one mode: a graph that reads parameters and buffers by name, tensors that the code made for itself, and how
    arguments and results are nested."""

    graph: fx.Graph
    constants: nn.Module
    in_spec: Any
    out_spec: Any


class Rewritten(nn.Module):
    """A network as a graph of operators, with parameters and buffers under the names they had.

    It evaluates. Whether it trains too depends on the model: a graph has its mode written into it (dropout that does nothing,
    batch norm with fixed statistics), so that training takes a second one (``training.py``). Without that, ``train()`` is
    refused.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], evaluating: Code, transient: Collection[str] = ()
    ) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(leaf, tensor)
            else:
                owner.register_buffer(leaf, tensor, persistent=name not in transient)
        self._specs: dict[bool, tuple[Any, Any]] = {}
        self._interpreters: dict[bool, fx.Interpreter] = {}
        self._why_not_trained = "nothing was captured in training mode"
        self._run_in_mode(False, evaluating)
        self.eval()

    def _run_in_mode(self, training: bool, code: Code) -> None:
        """Run this code when ``self.training`` is so."""
        setattr(self, _CONSTANTS[training], code.constants)
        self._specs[training] = (code.in_spec, code.out_spec)
        self._interpreters[training] = self._interpreter_of(code.graph)

    def _interpreter_of(self, graph: fx.Graph) -> fx.Interpreter:
        return fx.Interpreter(self, graph=graph, garbage_collect_values=True)

    def trained_by(self, code: Code) -> None:
        """Run this code in training mode, in place; until then ``train()`` is refused."""
        self._run_in_mode(True, code)
        self._why_not_trained = ""

    def not_trained_because(self, why: str) -> None:
        """Refuse ``train()`` for this reason, in place."""
        for kept in (self._specs, self._interpreters):
            kept.pop(True, None)
        self._why_not_trained = why

    @property
    def trains(self) -> bool:
        """Whether there is a graph for training mode."""
        return True in self._interpreters

    def train(self, mode: bool = True) -> Rewritten:
        """Change the mode; ``RuntimeError`` for training mode if there is no graph for it."""
        if mode and not self.trains:
            raise RuntimeError(
                "this smaller network is a graph of operators for evaluation mode, and cannot be set to training mode: "
                f"{self._why_not_trained}. Trained as it is, its dropout would do nothing and its batch norms would keep their "
                "statistics. Let the line that the warning of rewound.compact named take the size from its tensors (-1, or "
                "x.shape), and compact again"
            )
        return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        new = Rewritten.__new__(Rewritten)
        memo[id(self)] = new
        nn.Module.__init__(new)
        for key, value in vars(self).items():
            if key == "_specs":  # what is in it is immutable
                object.__setattr__(new, key, dict(value))
            elif key != "_interpreters":
                object.__setattr__(new, key, copy.deepcopy(value, memo))
        new._interpreters = {
            training: new._interpreter_of(copy.deepcopy(interpreter.graph))
            for training, interpreter in self._interpreters.items()
        }
        return new

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments and results as of the model it was made from."""
        in_spec, out_spec = self._specs[self.training]
        flat, spec = pytree.tree_flatten((args, kwargs))
        wanted = in_spec.num_leaves
        if len(flat) != wanted:
            raise TypeError(
                f"this network was captured with {wanted} inputs, called as {in_spec}; got {len(flat)} ({spec})"
            )
        result = self._interpreters[self.training].run(*flat, enable_io_processing=False)
        return pytree.tree_unflatten(list(result), out_spec)


_CONSTANTS = {False: "_constants", True: "_constants_of_training"}


def rewritten(
    model: nn.Module,
    coupling: Coupling,
    dead: np.ndarray,
    tensors: Mapping[str, Tensor],
    biases: Mapping[str, str] | None = None,
) -> Rewritten:
    """Return the graph of ``model`` with all sizes set for what is left when the atoms in ``dead`` leave.

    tensors: name -> every parameter and buffer, the smaller ones among them. biases: names of those that are new -> the
    module that gets each. ``ValueError`` if the model could only be recorded.
    """
    captured = coupling.capture
    if captured.program is None:
        raise ValueError(
            f"{type(model).__name__} could not be exported ({captured.recorded}), so its graph cannot be rewritten"
        )
    named = {name: tensors[name] for name in dict.fromkeys([*captured.tensors.values(), *(biases or {})])}
    transient = {
        f"{path}.{leaf}".lstrip(".")
        for path, part in named_modules(model)
        for leaf in part._non_persistent_buffers_set
    }
    return Rewritten(named, code_of(coupling, dead, biases or {}, training=False), transient)


def code_of(coupling: Coupling, dead: np.ndarray, biases: Mapping[str, str], training: bool) -> Code:
    """Return an exported graph with its sizes set; ``training``: the mode that it was captured in."""
    captured, constants = coupling.capture, nn.Module()
    paths = {path: name for name, path in biases.items()}
    copier = _Copier(coupling, dead, constants, _CONSTANTS[training], lengths(coupling, dead), paths)
    spec = captured.program.call_spec
    return Code(copier.copied(captured.graph, captured.module), constants, spec.in_spec, spec.out_spec)


@dataclass(frozen=True)
class _Copier:
    """Copies the graph (and those inside it) operator by operator, with new sizes."""

    coupling: Coupling
    dead: np.ndarray
    constants: nn.Module
    constants_name: str  # of that module in the network
    changes: Mapping[fx.Node, Change]
    biases: Mapping[str, str]  # module path -> name of the bias it gets

    def copied(self, graph: fx.Graph, module: fx.GraphModule | None, top: bool = True) -> fx.Graph:
        captured = self.coupling.capture
        new = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "placeholder" and top and node.name in captured.tensors:
                env[node] = new.get_attr(captured.tensors[node.name])
            elif node.op == "placeholder" and top and node.name in captured.constants:
                env[node] = self._constant(new, node.name, captured.constants[node.name])
            elif "_assert_tensor_metadata" in str(node.target):
                continue  # pins a dtype; nobody reads it
            elif node.op == "get_attr":
                found: Any = module
                for part in str(node.target).split("."):
                    found = getattr(found, part)
                if isinstance(found, fx.GraphModule):
                    found = fx.GraphModule(found, self.copied(found.graph, found, top=False))
                env[node] = self._constant(new, f"{node.name}_{len(self.constants._modules)}", found)
            else:
                env[node] = new.node_copy(node, lambda n: env[n])
                if node.op == "call_function":
                    _resize(self.coupling, node, env[node], self.dead)
                    env[node] = repaired(self.changes, node, env[node])
                    if top:
                        self._biased(new, node, env[node])
        return new

    def _constant(self, new: fx.Graph, name: str, value: Any) -> fx.Node:
        if isinstance(value, nn.Module):
            self.constants.add_module(name, value)
        else:
            self.constants.register_buffer(name, value, persistent=False)
        return new.get_attr(f"{self.constants_name}.{name}")

    def _biased(self, new: fx.Graph, old: fx.Node, node: fx.Node) -> None:
        name = self.biases.get(place(old))
        if name is not None and short(old) in _BIASED and not any(old.args[2:3]):
            with new.inserting_before(node):
                bias = new.get_attr(name)
            node.args = (*node.args[:2], bias, *node.args[3:])


_BIASED = ("linear", "conv1d", "conv2d", "conv3d")


def _resize(coupling: Coupling, old: fx.Node, new: fx.Node, dead: np.ndarray) -> None:
    name = str(old.target)
    short = name.split(".")[1] if name.startswith("aten.") else ""
    rule = _SIZES.get(short)
    if rule is not None:
        rule(_Sizes(coupling, dead), old, new)


class _Sizes:
    """Old and new sizes of the values of a graph."""

    def __init__(self, coupling: Coupling, dead: np.ndarray) -> None:
        self.coupling, self.dead = coupling, dead

    def kept(self, cells: Cells) -> np.ndarray:
        return kept_rows(self.coupling.atoms, cells, self.dead)

    def of(self, node: fx.Node) -> list[int]:
        value = self.coupling.values[node]
        assert isinstance(value, Value)
        return [int(self.kept(dim.cells).sum()) for dim in value.dims]

    def pieces(self, node: fx.Node, axis: int) -> list[int]:
        return [int(self.kept(piece.dims[axis].cells).sum()) for piece in self.coupling.values[node]]

    def before(self, node: fx.Node, axis: int, place: int) -> int:
        """How many of the first ``place`` entries along an axis are kept."""
        value = self.coupling.values[node]
        kept = self.kept(value.dims[axis].cells)
        place = max(0, place + len(kept)) if place < 0 else place
        return int(kept[:place].sum())


def _set(node: fx.Node, at: int, value: Any) -> None:
    node.args = (*node.args[:at], value, *node.args[at + 1 :])


def _shape(at: int) -> Callable[[_Sizes, fx.Node, fx.Node], None]:
    """The argument ``at`` is the shape of the result; -1 and symbolic sizes stay."""

    def rule(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
        fresh, given = sizes.of(old), list(new.args[at])
        more = len(fresh) - len(given)
        _set(new, at, [g if isinstance(g, fx.Node) or g == -1 else n for g, n in zip(given, fresh[more:])])

    return rule


def _unflatten(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    dim, given = int(old.args[1]), list(new.args[2])
    ndim = len(sizes.coupling.values[old.args[0]].dims)
    at = dim + ndim if dim < 0 else dim
    fresh = sizes.of(old)[at : at + len(given)]
    _set(new, 2, [g if isinstance(g, fx.Node) or g == -1 else n for g, n in zip(given, fresh)])


def _axis(sizes: _Sizes, node: fx.Node, dim: Any) -> int:
    return int(dim) % len(sizes.coupling.values[node].dims)


def _split(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    dim = old.args[2] if len(old.args) > 2 else old.kwargs.get("dim", 0)
    pieces = sizes.pieces(old, _axis(sizes, old.args[0], dim))
    _set(new, 1, pieces if isinstance(old.args[1], (list, tuple)) else pieces[0])


def _slice(sizes: _Sizes, old: fx.Node, new: fx.Node, first: int = 1) -> None:
    dim = old.args[first] if len(old.args) > first else 0
    axis = _axis(sizes, old.args[0], dim)
    size = len(sizes.coupling.values[old.args[0]].dims[axis])
    for at in (first + 1, first + 2):
        bound = old.args[at] if len(old.args) > at else None
        if isinstance(bound, int) and -size <= bound < size:
            _set(new, at, sizes.before(old.args[0], axis, bound))


def _tensor_split(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    if isinstance(old.args[1], (list, tuple)):
        dim = old.args[2] if len(old.args) > 2 else old.kwargs.get("dim", 0)
        axis = _axis(sizes, old.args[0], dim)
        _set(new, 1, [sizes.before(old.args[0], axis, place) for place in old.args[1]])


def _narrow(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    axis = _axis(sizes, old.args[0], old.args[1])
    start = old.args[2]
    if isinstance(start, int):
        _set(new, 2, sizes.before(old.args[0], axis, start))
    _set(new, 3, sizes.of(old)[axis])


def _groups(at: int) -> Callable[[_Sizes, fx.Node, fx.Node], None]:
    def rule(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
        cells = sizes.coupling.groups.get(old)
        if cells is not None:
            _set(new, at, int(sizes.kept(cells).sum()))

    return rule


def _normalized(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    _set(new, 1, sizes.of(old)[-len(old.args[1]) :])


def _interleaved(sizes: _Sizes, old: fx.Node, new: fx.Node) -> None:
    dim = old.args[2] if len(old.args) > 2 else old.kwargs.get("dim")
    axis = _axis(sizes, old.args[0], dim)
    if isinstance(old.args[1], int):
        _set(new, 1, sizes.of(old)[axis] // max(1, sizes.of(old.args[0])[axis]))


_SIZES: dict[str, Callable[[_Sizes, fx.Node, fx.Node], None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "new_zeros", "new_ones", "new_full", "new_empty",
                     "broadcast_to"), _shape(1)),
    **dict.fromkeys(("zeros", "ones", "full", "empty"), _shape(0)),
    "unflatten": _unflatten,
    **dict.fromkeys(("split", "unsafe_split"), _split),
    "split_with_sizes": _split,
    "slice": _slice,
    "narrow": _narrow,
    "tensor_split": _tensor_split,
    "slice_scatter": partial(_slice, first=2),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _groups(6)),
    **dict.fromkeys(("group_norm", "channel_shuffle", "native_channel_shuffle"), _groups(1)),
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "repeat_interleave": _interleaved,
}  # fmt: skip
