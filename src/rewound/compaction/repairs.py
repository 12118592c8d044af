"""Factors that make a removal exact: the mean of an RMSNorm and the scale of an attention follow sizes that become smaller.

An RMSNorm divides by the root of S / n + eps. The S of the masked network is that of the smaller one, its n is not: with
r = n_old / n_new, S / n_new + r eps is r times as much, so the norm's weight times sqrt(r) and eps times r make the same
function. An attention that divides by sqrt(d) is the same with queries times sqrt(d_new / d_old): what writes them is scaled.

In a module the factors go into weights and into the attribute that holds eps; every use is found in the graph, and where one is
not (eps written into the code, a norm without a weight) the module is not repaired, and says why. In a graph
(``rewriting.py``) the mean is multiplied and the scale set, which always works. Nothing here is trusted: the proof runs after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from rewound.compaction.capture import place, source
from rewound.compaction.coordinates import Scale
from rewound.compaction.coupling import Coupling, kept_rows
from rewound.compaction.mending import Edits
from rewound.compaction.queries import Unclear, origin, passes, short, writers_of
from rewound.parameters import named_modules


@dataclass(frozen=True)
class Repair:
    """scale: name -> factor of what is left of that tensor. edits: attributes (eps). pins: attributes of the masked model that
    the smaller one has to be proven against (an eps that followed the dtype). failed: what no module can be told, and why."""

    scale: Mapping[str, Scale]
    edits: Edits
    pins: Edits
    failed: tuple[str, ...] = ()


def plan_repair(
    model: nn.Module,
    coupling: Coupling,
    dead: np.ndarray,
    kept: Mapping[str, Mapping[int, Tensor]],
    products: bool = False,
) -> Repair:
    """Return the factors and attributes that make up for what leaves: the atoms flagged in ``dead``.

    kept: see ``Coordinates``. products: also where code of its own multiplies queries by keys. In the graph its scale is a
    number and stays; the code may take the root of a size anew (``q.shape[-1] ** -0.5``).
    """
    changes = lengths(coupling, dead, products)
    plan = _Plan(model, coupling)
    if all(change.old == change.new for change in changes.values()):
        return Repair({}, {}, {})
    for node, change in changes.items():
        try:
            plan.read(node, change)
        except Unclear as why:
            if change.old != change.new:
                plan.failed.append(
                    f"{_WHAT[change.what]} at {source(node)} follows a size that became smaller, and {why}"
                )
    return Repair(plan.scale(kept), plan.edits, plan.pins, tuple(plan.failed))


_WHAT = {"mean": "the mean of squares", "rms_norm": "the RMSNorm"}
_WHAT |= dict.fromkeys(("attention", "product"), "the scale of the attention")


@dataclass
class Change:
    """How long the axes were that an operator divides by, and are."""

    what: str
    old: int = 1
    new: int = 1

    @property
    def ratio(self) -> float:
        return self.old / self.new


def lengths(coupling: Coupling, dead: np.ndarray, products: bool = False) -> dict[fx.Node, Change]:
    """Return every operator whose result depends on the length of an axis, with that length before and after. products: those too
    on which it depends in the code only."""
    found: dict[fx.Node, Change] = {}
    for rescale in coupling.rescales:
        if rescale.what == "product" and not products:
            continue
        change = found.setdefault(rescale.node, Change(rescale.what))
        change.old *= len(rescale.cells)
        change.new *= int(kept_rows(coupling.atoms, rescale.cells, dead).sum())
    return found


def scales_in_code(coupling: Coupling, dead: np.ndarray) -> bool:
    """Whether products of activations sum over fewer entries, which code of its own may divide by the root of."""
    changes = lengths(coupling, dead, products=True).values()
    return any(change.what == "product" and change.old != change.new for change in changes)


def repaired(changes: Mapping[fx.Node, Change], old: fx.Node, new: fx.Node) -> fx.Node:
    """Repair ``new``, the copy of operator ``old`` in a graph of smaller sizes; return the node that is its result now."""
    change = changes.get(old)
    if change is None or change.old == change.new:
        return new
    if change.what == "attention":
        new.kwargs = {**new.kwargs, "scale": change.old**-0.5}
        return new
    factor = 1 / change.ratio
    if change.what == "rms_norm":
        x, shape, weight, eps = _of_rms_norm(new)
        new.args = (x, shape, weight, (_default_eps(old) if eps is None else eps) * change.ratio)
        new.kwargs = {}
        factor = change.ratio**0.5
    return new.graph.call_function(torch.ops.aten.mul.Tensor, (new, factor))


class _Plan:
    """What has to be scaled and set, collected operator by operator."""

    def __init__(self, model: nn.Module, coupling: Coupling) -> None:
        self.coupling = coupling
        self.modules = dict(named_modules(model))
        self.edits: Edits = {}
        self.pins: Edits = {}
        self.failed: list[str] = []
        self._factors: dict[
            str, dict[str, Tensor]
        ] = {}  # name -> norm or attention -> factors; NaN: none asked for
        self._around: dict[str, float] = {}

    def read(self, node: fx.Node, change: Change) -> None:
        """Take one operator into account. ``Unclear`` if a module cannot be told."""
        if change.what in ("attention", "product"):
            # nn.MultiheadAttention becomes a class that keeps its scale (attention.py)
            if change.old != change.new and not isinstance(
                self.modules.get(place(node)), nn.MultiheadAttention
            ):
                query: Any = node.args[0]
                for name, rows in writers_of(self.coupling, query).items():
                    nothing = torch.full(rows.shape, torch.nan, dtype=torch.float64)
                    self._add(name, "attention", nothing.masked_fill(rows, change.ratio**-0.5), None)
            return
        if change.what == "rms_norm":
            *_, weight, eps = _of_rms_norm(node)
            power, eps_power = -0.5, 1.0
            known: tuple[str | None, float] = origin(self.coupling, weight)
        else:
            eps, eps_power, power, known = _norm(self.coupling, node)
        weighted, around = known
        # also where nothing changes: another norm may share the attribute
        self._set_eps(node, eps, change.ratio**eps_power, change.what)
        if change.old == change.new:
            return
        if weighted is None:
            raise Unclear("no weight follows that could take the factor")
        ones = torch.ones([1] * len(self.coupling.structure.shapes[weighted]), dtype=torch.float64)
        self._add(weighted, "norm", ones * change.ratio**-power, around)

    def scale(self, kept: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Scale]:
        """Return the factor of every tensor, of the size of what is left of it."""
        found = {}
        for name, kinds in self._factors.items():
            factor = torch.ones((), dtype=torch.float64)
            for part in kinds.values():
                factor = factor * part.nan_to_num(nan=1.0)
            if name not in kept:
                self.failed.append(f"{name!r} would have to be scaled, and none of it leaves")
            else:
                found[name] = Scale(factor, self._around.get(name, 0.0)).cut(kept[name])
        return found

    def _add(self, name: str, kind: str, factor: Tensor, around: float | None) -> None:
        before = self._factors.setdefault(name, {}).get(kind, torch.full_like(factor, torch.nan))
        differ = ~before.isnan() & ~factor.isnan() & (before != factor)
        if bool(differ.any()) or (around is not None and self._around.setdefault(name, around) != around):
            raise Unclear(f"{name!r} is used at several places that need different factors")
        self._factors[name][kind] = torch.where(factor.isnan(), before, factor)

    def _set_eps(self, node: fx.Node, eps: Any, factor: float, what: str) -> None:
        if not eps and eps is not None:
            return
        path = place(node)
        module = self.modules.get(path)
        if eps is None:
            if what != "rms_norm":
                return
            if not isinstance(module, nn.RMSNorm) or module.eps is not None:
                raise Unclear("its eps, which follows the dtype, is no attribute")
            default = _default_eps(node)
            self.pins[path, "eps"], name, eps = default, "eps", default
        else:
            held = [name for name, value in vars(module).items() if isinstance(value, float) and value == eps]
            held = [name for name in held if "eps" in name] or held
            if len(held) != 1:
                there = "no attribute" if not held else f"one of {', '.join(held)}"
                raise Unclear(f"its eps of {eps:g} is {there} of the module {path!r}")
            (name,) = held
        if self.edits.setdefault((path, name), eps * factor) != eps * factor:
            raise Unclear(
                f"{name!r} of the module {path!r} is used at several places that need different factors"
            )


def _of_rms_norm(node: fx.Node) -> tuple[Any, Any, Any, Any]:
    names = ("input", "normalized_shape", "weight", "eps")
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return given["input"], given["normalized_shape"], given.get("weight"), given.get("eps")


def _default_eps(node: fx.Node) -> float:
    """What torch takes for an eps of None: float32's, also for half precision."""
    x = _of_rms_norm(node)[0]
    return torch.finfo(torch.float64 if x.meta["val"].dtype is torch.float64 else torch.float32).eps


def _norm(coupling: Coupling, mean: fx.Node) -> tuple[float | None, float, float, tuple[str | None, float]]:
    """Read on from a mean of squares: eps, the power of the mean that eps is added to, the power that x is multiplied by, and
    (name, a) of the weight w in x * (mean + eps) ** power * (a + w)."""
    node, power = mean, 1.0
    eps, eps_power = None, 1.0
    while True:
        user = _only_user(node)
        name, number = short(user), _number_beside(user, node)
        if name in ("add", "clamp_min", "clamp", "clip") and number is not None and eps is None:
            eps, eps_power = number, power
        elif name in ("sqrt", "rsqrt", "reciprocal", "pow"):
            power *= {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}.get(name, number or 0)
        elif name in ("mul", "multiply") and number is None:
            return eps, eps_power, power, _weight(coupling, user, node)
        elif name in ("div", "divide", "true_divide") and user.args[1] is node:
            return eps, eps_power, -power, _weight(coupling, user, node)
        elif not passes(user):
            raise Unclear(f"goes on to {name} at {source(user)}, so that it is not read as an RMSNorm")
        node = user


def _weight(coupling: Coupling, product: fx.Node, factor: fx.Node) -> tuple[str | None, float]:
    """Return the weight (and what is added to it) among the factors of a product: before, beside or after this one."""
    other = next((n for n in product.all_input_nodes if n is not factor), None)
    while other is not None:
        for each in (other, *(other.all_input_nodes if short(other) in ("mul", "multiply") else ())):
            if (found := origin(coupling, each))[0] is not None:
                return found
        node = product
        product = _only_user(node)
        if not passes(product) and short(product) not in ("mul", "multiply"):
            break
        other = next((n for n in product.all_input_nodes if n is not node), node)
    raise Unclear("no weight follows that could take the factor")


def _only_user(node: fx.Node) -> fx.Node:
    users = [user for user in node.users if "_assert_tensor_metadata" not in str(user.target)]
    if len(users) != 1 or users[0].op != "call_function":
        raise Unclear(f"{short(node)} has {len(users)} readers, so that it is not read as an RMSNorm")
    return users[0]


def _number_beside(user: fx.Node, node: fx.Node) -> float | None:
    others = [a for a in user.args if a is not node]
    return float(others[0]) if len(others) == 1 and isinstance(others[0], (int, float)) else None
