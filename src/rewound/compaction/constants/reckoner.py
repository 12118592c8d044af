"""Carries out a graph on what its tensors hold, and notes what every operator reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from rewound.compaction.atoms import Cells
from rewound.compaction.capture import place
from rewound.compaction.constants import moving, recurrent, space, statistics, sums
from rewound.compaction.constants.holding import NAN, Rule, told, unknown
from rewound.compaction.contracts import attention, contraction, normalization, reduction
from rewound.compaction.contracts import recurrent as recurrent_contracts
from rewound.compaction.coupling import Coupling
from rewound.compaction.queries import origin, short
from rewound.compaction.values import Value
from rewound.parameters import named_modules


@dataclass
class Read:
    """One operator that sums over an axis: what a unit that leaves must not be missed by.

    cells: of the axis. held: what each of its slices holds, NaN where it varies. uses: [groups, out, in per group], which
    outputs depend on it (None: all). out: cells of the outputs. weight: the matrix [groups, out, in] of factors, summed over a
    kernel's places; with it a constant can be folded into ``bias`` (the name, None where there is no place for one). why: what
    is in the way of folding, of anything but zero.
    """

    node: fx.Node
    cells: Cells
    held: Tensor
    uses: Tensor | None = None
    out: Cells | None = None
    weight: Callable[[], Tensor] | None = None
    bias: str | None = None
    why: str = "sums over them"


@dataclass
class Constants:
    """reads: every operator that sums over an axis something may leave of. users: of each bias that a constant may be folded
    into, how many operators add it. new: those among them that are not there yet -> their module."""

    reads: list[Read] = field(default_factory=list)
    users: dict[str, int] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)


def constants(model: nn.Module, coupling: Coupling, tensors: Mapping[str, Tensor]) -> Constants:
    """Return what every operator reads, in the network with these parameters and buffers (name -> tensor)."""
    reckoner = Reckoner(model, coupling, tensors)
    with torch.no_grad():
        reckoner.graph(coupling.capture.graph, coupling.capture.module, None)
    return reckoner.found


class Reckoner:
    """Carries out a graph on what its tensors hold."""

    def __init__(self, model: nn.Module, coupling: Coupling, tensors: Mapping[str, Tensor]) -> None:
        self.coupling, self.tensors = coupling, tensors
        self.modules = dict(named_modules(model))
        self.found = Constants()
        self.rescaled = {rescale.node for rescale in coupling.rescales if rescale.what == "mean"}
        self.held: dict[fx.Node, Any] = {}
        self._alike: dict[fx.Node, list[fx.Node]] = {}
        self._free: dict[int, tuple[Cells, bool]] = {}

    # ---- the graph --------------------------------------------------------------------------------------------------

    def graph(self, graph: fx.Graph, module: fx.GraphModule | None, arguments: list[Any] | None) -> Any:
        given = iter(arguments or ())
        for node in graph.nodes:
            if node.op == "placeholder":
                self.held[node] = self._placeholder(node) if arguments is None else next(given)
            elif node.op == "get_attr":
                found: Any = module
                for part in str(node.target).split("."):
                    found = getattr(found, part)
                self.held[node] = found.cpu() if isinstance(found, Tensor) else found
            elif node.op == "call_function":
                self.held[node] = self._call(node)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: self.held[n])
        return None

    def _placeholder(self, node: fx.Node) -> Any:
        captured = self.coupling.capture
        if node.name in captured.tensors:
            return self.tensors[captured.tensors[node.name]]
        if node.name in captured.constants:
            return captured.constants[node.name].cpu()
        return unknown(node)

    def _call(self, node: fx.Node) -> Any:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: self.held[n])
        if node.target is operator.getitem:
            self._shares(node)
            return arguments[0][arguments[1]]
        name = short(node)
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            at = next(i for i, a in enumerate(arguments) if isinstance(a, fx.GraphModule))
            return self.graph(arguments[at].graph, arguments[at], list(arguments[at + 1 :]))
        in_place = name.endswith("_") and not name.endswith("__")
        rule = RULES.get(name) or (RULES.get(name[:-1]) if in_place else None)
        try:
            result = unknown(node) if rule is None else rule(self, node, *arguments, **keywords)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, NotImplementedError):
            result = unknown(node)
            if rule is not None and name in _SUMMING:
                self.missed(node)
        result = self._collapsed(node, result)
        if in_place:
            self._written(node, result)
        elif name in _VIEWS:
            self._shares(node)
        return result

    def _shares(self, node: fx.Node) -> None:
        base = node.args[0]
        if isinstance(base, fx.Node):
            family = self._alike.setdefault(base, [base])
            family.append(node)
            self._alike[node] = family

    def _written(self, node: fx.Node, result: Any) -> None:
        """After an operator in place, whatever looks at the same memory holds something else."""
        self._shares(node)
        for other in self._alike.get(node, ()):
            if other is not node:
                self.held[other] = result if other is node.args[0] else unknown(other)

    def _collapsed(self, node: fx.Node, result: Any) -> Any:
        """Along axes nothing of which leaves, only what is alike everywhere is worth knowing."""
        value = self.coupling.values.get(node)
        if isinstance(result, list) and isinstance(value, list) and len(result) == len(value):
            return [self._one(v, r) for v, r in zip(value, result)]
        return self._one(value, result)

    def _one(self, value: Any, held: Any) -> Any:
        if not isinstance(held, Tensor) or not isinstance(value, Value) or value.origin is not None:
            return held
        for axis, dim in enumerate(value.dims):
            if axis < held.ndim and held.shape[axis] > 1 and not self.free(dim.cells):
                held = held.double()  # of whole numbers too: NaN is none
                first = held.narrow(axis, 0, 1)
                same = (held == first).all(axis, keepdim=True)
                held = first.masked_fill(~same, NAN)
        return held

    # ---- for the rules ----------------------------------------------------------------------------------------------

    def free(self, cells: Cells) -> bool:
        """Whether anything along an axis may leave."""
        if not cells.size:
            return False
        found = self._free.get(id(cells))
        if found is None:
            atoms = self.coupling.atoms
            resolved = atoms.resolve(cells)
            found = self._free[id(cells)] = (cells, bool(((resolved > 0) & (atoms.why(resolved) == 0)).any()))
        return found[1]

    def cells(self, node: Any, axis: int) -> Cells:
        """The cells of an axis of a node."""
        value = self.coupling.values[node]
        assert isinstance(value, Value)
        return value.dims[axis].cells

    def read(self, node: fx.Node, cells: Cells, held: Tensor, **more: Any) -> None:
        """Note that an operator sums over an axis."""
        if self.free(cells):
            self.found.reads.append(Read(node, cells, held.expand(len(cells)), **more))

    def missed(self, node: fx.Node) -> None:
        """Note that an operator does something with its operands that is not read: nothing of them can leave."""
        for operand in node.all_input_nodes:
            value = self.coupling.values.get(operand)
            for dim in value.dims if isinstance(value, Value) else ():
                self.read(node, dim.cells, torch.full((1,), NAN), why="reads them in a way that is not known")

    def bias_of(self, node: fx.Node, weight: Any, bias: Any) -> tuple[str | None, str]:
        """Return the name of the bias that a constant can be folded into, or None and why there is none."""
        tensors = self.coupling.capture.tensors
        if origin(self.coupling, weight)[0] is None:
            return None, f"{told(node)} computes its weight"
        if isinstance(bias, fx.Node):
            if bias.name not in tensors:
                return None, f"{told(node)} computes its bias"
            name = tensors[bias.name]
            users = [
                u
                for p in bias.graph.nodes
                if p.op == "placeholder" and tensors.get(p.name) == name
                for u in p.users
            ]
            self.found.users[name] = len(users)
            return name, ""
        path = place(node)
        module = self.modules.get(path)
        plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if (
            isinstance(module, plain)
            and module.bias is None
            and any(type(module).forward is kind.forward for kind in plain)
        ):
            name = f"{path}.bias" if path else "bias"
            self.found.new[name] = path
            self.found.users[name] = sum(place(u) == path for u in weight.users)
            return name, ""
        return None, f"{told(node)} has no bias to fold it into"


# these fix what they depend on, and go through the rest one by one
_HARMLESS = set(
    """embedding softmax _softmax log_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp topk sort argsort tril
    triu _weight_norm _pack_padded_sequence _pad_packed_sequence""".split()
)
_SUMMING = {
    *contraction.RULES,
    *attention.RULES,
    *normalization.RULES,
    *reduction.RULES,
    *recurrent_contracts.RULES,
} - _HARMLESS
_VIEWS = """view reshape _unsafe_view flatten unflatten view_as permute transpose t mT movedim unsqueeze squeeze slice
select split chunk split_with_sizes unbind expand expand_as alias detach narrow swapaxes""".split()


def _missed(self: Reckoner, node: fx.Node, *_: Any, **__: Any) -> Any:
    self.missed(node)
    return unknown(node)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_SUMMING, _missed),
    **moving.RULES,
    **sums.RULES,
    **statistics.RULES,
    **space.RULES,
    **recurrent.RULES,
}
