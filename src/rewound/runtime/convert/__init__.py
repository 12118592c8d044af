"""A torch model as a Graph: captured by ``torch.export``, constants computed, operators translated, the rest left to torch.

Constants (whatever depends on parameters and sizes alone: masks of a pruned weight, position tables, class tokens) are computed
here, in float64. The model is not changed. Needs torch; nothing else of ``rewound.runtime`` does until an engine falls back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rewound.parameters import canonical
from rewound.runtime import operators
from rewound.runtime.convert import elementwise, layers, moves, transposed  # noqa: F401  # they register rules
from rewound.runtime.convert.build import PROBES, Builder, Const, Live, Tracked, Unbatchable, Unknown
from rewound.runtime.convert.calls import Call, Calls, Ref, batch_of, calls_of, fixed
from rewound.runtime.convert.rules import apply
from rewound.runtime.convert.sizes import Axes, Batch, axes_of, flat, plain
from rewound.runtime.convert.structure import arguments_of, results_of
from rewound.runtime.graph import Graph, Value


def convert(model: nn.Module, example: Any) -> Graph:
    """Return what ``model`` computes in evaluation mode, for any batch where its code allows that.

    example: a tensor, a tuple of positional or a dict of keyword arguments; batches stand in first axes. Operators that no rule
    knows are ``torch`` nodes. Arrays are float32 where they are the model's own and float64 where they were computed: call
    ``simplify``, then ``rounded``. ``graph.structure["batch"]`` says why, where the batch had to be fixed.

    ``ValueError``: the model's data decide what it computes (the line is named), it has a state, or draws at random.

    >>> graph = convert(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3))
    >>> [(node.op, node.source) for node in graph.nodes]
    [('linear', '0'), ('activation', '1')]
    >>> graph.values[graph.outputs[0]].shape
    (None, 2)
    """
    calls = calls_of(model, example)
    try:
        graph = _converted(calls, model, example)
    except Unbatchable as error:
        if calls.images is not None:
            raise ValueError(str(error)) from error
        graph = _converted(fixed(model, example, str(error)), model, example)
    operators.check(graph)
    return graph


def _converted(calls: Calls, model: nn.Module, example: Any) -> Graph:
    b = Builder(calls.images)
    b.parameters = {_named(name) for name, _ in model.named_parameters()}
    known: dict[str, Any] = {}
    for given in calls.inputs:
        if given.dtype.is_complex:
            raise ValueError(f"input {given.name!r} is {given.dtype}: an engine computes in float32")
        own = batch_of(example)
        held = bool(given.shape) and (isinstance(given.shape[0], Batch) or given.shape[0] == calls.images)
        axes = axes_of(given.shape, calls.images) if held else None
        if axes is None:
            raise ValueError(
                f"input {given.name!r} has the shape {[str(n) for n in given.shape]}, and the example's batch is {own}: every "
                "input needs the batch as its first axis (make it a constant of the model, or repeat it)"
            )
        kind = (
            "float32" if given.dtype.is_floating_point else "bool" if given.dtype == torch.bool else "int64"
        )
        b.values[given.name] = Value(
            (calls.images, *(int(n) for n in given.shape[1:] if isinstance(n, int))), kind
        )
        known[given.name] = Live(given.name, axes, given.dtype, given.shape)
    for name, (tensor, origin) in calls.tensors.items():
        known[name] = Const((tensor.detach(),), _named(origin))
    for call in calls.calls:
        b.source, b.line = call.source, call.line
        known[call.name] = _called(b, call, known)
    b.source = "results"
    outputs: list[str] = []
    views: list[Any] = []
    for leaf in calls.results:
        result = known[leaf.name] if isinstance(leaf, Ref) else leaf
        first: dict[str, Any] = {}
        if isinstance(result, Const) and (axes := axes_of(result.shape, b.images)) is not None:
            result = b.made_live(result, axes)
        elif isinstance(result, Const):  # no batch: the same for every call
            values = result.value
            result = b.made_live(
                Const((values[None],), result.origin), ((None,), *((n,) for n in values.shape))
            )
            first = {"first": True}
        if not isinstance(result, Live):
            views.append({"constant": result if isinstance(result, (int, float, bool, str)) else None})
            continue
        views.append(
            {
                "value": len(outputs),
                "dtype": str(result.dtype).removeprefix("torch."),
                **first,
                **_view(result),
            }
        )
        outputs.append(result.name)
    inputs = [given.name for given in calls.inputs]
    structure = {
        "arguments": arguments_of(model, example, inputs),
        "results": results_of(calls.returned, views),
        "batch": calls.why,
    }
    return b.graph(inputs, outputs, structure)


def _named(parameter: str) -> str:
    """Return the name that a parameter has for those who prune it: a parametrized or masked one is still "weight".

    >>> _named("fc.weight_orig"), _named("fc.parametrizations.weight.original0")
    ('fc.weight', 'fc.weight')
    """
    name = re.sub(r"(^|\.)parametrizations\.(\w+)\.original\d*$", r"\1\2", canonical(parameter))
    return re.sub(r"_orig$", "", name)


def _called(b: Builder, call: Call, known: Mapping[str, Any]) -> Any:
    if call.target.__name__ == "getitem":
        return _item(b, call, known)
    arguments = {name: _resolved(value, known) for name, value in call.arguments.items()}
    leaves = tree_leaves(list(arguments.values()), is_leaf=lambda x: isinstance(x, (Live, Const)))
    if not any(isinstance(leaf, (Live, _Several)) for leaf in leaves):
        return _computed(b, call, arguments)
    try:
        made = apply(b, call, arguments)
    except Unknown:
        made = None
    if call.shape is None:  # several results: those that no rule gave come from torch when they are asked for
        return _Several(call, arguments, made if isinstance(made, list) else [] if made is None else [made])
    if isinstance(made, Live) and made.shape == call.shape:
        return Live(made.name, made.axes, call.dtype or made.dtype, made.shape)
    if isinstance(made, Const):
        return made
    return _fallen_back(b, call, arguments, call, None)


class _Several:
    """The results of one call: what a rule made of the first of them, and the call."""

    def __init__(self, call: Call, arguments: dict[str, Any], made: list[Any]) -> None:
        self.call, self.arguments, self.made = call, arguments, made


def _item(b: Builder, call: Call, known: Mapping[str, Any]) -> Any:
    several, index = known[call.arguments["of"].name], call.arguments["index"]
    if isinstance(several, list):  # constants
        return several[index]
    if index < len(several.made) and (made := several.made[index]) is not None and made.shape == call.shape:
        return Live(made.name, made.axes, call.dtype or made.dtype, made.shape)
    b.source, b.line = several.call.source, several.call.line
    return _fallen_back(b, several.call, several.arguments, call, index)


def _resolved(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return known[value.name]
    return [_resolved(item, known) for item in value] if isinstance(value, list) else value


# -- constants ------------------------------------------------------------------------------------------------------------------

_VIEWS = (
    "t transpose permute view reshape expand slice select unsqueeze squeeze contiguous clone alias detach lift_fresh_copy "
    "flatten unflatten to _to_copy chunk split unbind dropout"
).split()  # fmt: skip


def _computed(b: Builder, call: Call, arguments: Mapping[str, Any]) -> Any:
    """Return what a call makes of constants alone, computed with torch in float64."""
    _require_certain(call, arguments)
    name = str(call.target).split(".")[1]
    leaves = tree_leaves(list(arguments.values()), is_leaf=lambda x: isinstance(x, Const))
    given = [leaf for leaf in leaves if isinstance(leaf, Const)]
    grows = any(isinstance(leaf, Batch) for leaf in leaves) or any(len(leaf.at) > 1 for leaf in given)
    origins = sorted(
        (leaf.origin for leaf in given if leaf.origin), key=lambda name: name not in b.parameters
    )
    results = []
    for probe in range(len(PROBES) if grows else 1):

        def at(value: Any, probe: int = probe) -> Any:
            if isinstance(value, list):
                return [at(item, probe) for item in value]
            if isinstance(value, Batch):
                return value.at(PROBES[probe])
            if isinstance(value, Const):
                tensor = value.at[min(probe, len(value.at) - 1)]
                return tensor.double() if tensor.is_floating_point() and name not in _VIEWS else tensor
            if isinstance(value, torch.device):
                return torch.device("cpu")
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

        with torch.no_grad():
            made = call.target(**{key: at(value) for key, value in arguments.items()})
        results.append(made)
    origin = origins[0] if origins else ""
    if isinstance(results[0], Tensor):
        return Const(tuple(results), origin)
    return [Const(tuple(parts), origin) for parts in zip(*results)]


# -- what runs in torch ---------------------------------------------------------------------------------------------------------


def _require_certain(call: Call, arguments: Mapping[str, Any]) -> None:
    """``ValueError`` if a call draws at random, which dropout, attention and recurrent layers do in training alone."""
    if torch.Tag.nondeterministic_seeded not in call.target.tags:
        return
    given = {"p": 0, "dropout": 0, "dropout_p": 0, **arguments}
    training = given.get("train", given.get("training"))
    rates = given["dropout"] or given["dropout_p"] or given["p"]
    names = "lstm gru rnn_ dropout feature_dropout alpha_dropout scaled_dot_product rrelu"
    known = str(call.target).split(".")[1].startswith(tuple(names.split()))
    if not known or (training is not False and (training or rates)):
        raise ValueError(
            f"{call.target} at {call.line} draws at random: an engine computes the same each time"
        )


def _fallen_back(
    b: Builder, call: Call, arguments: Mapping[str, Any], result: Call, index: int | None
) -> Live:
    """Return the result of a ``torch`` node."""
    _require_certain(call, arguments)
    if torch.Tag.data_dependent_output in call.target.tags:
        raise ValueError(
            f"{call.target} at {call.line}: the data decide what comes next; an engine takes one path only"
        )
    inputs: list[str] = []
    weights: dict[str, str] = {}

    def encoded(value: Any) -> Any:
        if isinstance(value, Live):
            if value.name not in inputs:
                inputs.append(value.name)
            kind = str(value.dtype).removeprefix("torch.")
            return {"value": inputs.index(value.name), "dtype": kind, **_view(value)}
        if isinstance(value, Const):
            return _encoded_constant(b, value, weights)
        if isinstance(value, Batch):
            return {"batch": value.factor}
        if isinstance(value, list):
            return [encoded(item) for item in value]
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ValueError(f"{call.target} at {call.line} is given {value!r}, which no file can hold")

    kept = {
        n: v
        for n, v in arguments.items()
        if not isinstance(v, (torch.device, torch.layout, torch.memory_format))
    }
    spelled = {n: encoded(v) for n, v in kept.items() if n not in ("pin_memory", "non_blocking")}
    if result.shape is None or result.dtype is None or result.dtype.is_complex:
        raise ValueError(f"{call.target} at {call.line} makes no tensor of real numbers")
    axes = axes_of(result.shape, b.images)
    if axes is None and any(isinstance(n, Batch) for n in result.shape):
        raise Unbatchable(
            f"{call.target} at {call.line} makes a tensor of several batches or none as its axis"
        )
    attributes: dict[str, Any] = {"target": str(call.target), "arguments": spelled, "line": call.line}
    if index is not None:
        attributes["output"] = index
    shape: tuple[int | None, ...] = tuple(n for n in result.shape if isinstance(n, int))
    if axes is not None:
        shape = (b.images, *(f for f in flat(axes) if f is not None))
        if not plain(axes):
            attributes["view"] = _result_view(axes)
    kind = "float32" if result.dtype.is_floating_point or result.dtype == torch.bool else "int64"
    name = b.emit("torch", inputs, weights, declared=Value(shape, kind), **attributes)
    return Live(name, axes, result.dtype, result.shape)


def _encoded_constant(b: Builder, value: Const, weights: dict[str, str]) -> dict[str, Any]:
    tensor, expand = value.at[0], None
    if len(value.at) > 1:
        for other, (axis, size) in ((value.at[1], pair) for pair in enumerate(value.shape)):
            if isinstance(size, Batch):
                if not all(torch.equal(t.narrow(axis, 0, 1).expand_as(t), t) for t in value.at):
                    raise Unbatchable("a constant depends on the batch's size")
                tensor = tensor.narrow(axis, 0, 1)
                other = other.narrow(axis, 0, 1)
        expand = [{"batch": n.factor} if isinstance(n, Batch) else n for n in value.shape]
    kind = str(tensor.dtype).removeprefix("torch.")
    stored = tensor.to(torch.float32) if not tensor.is_floating_point() else tensor
    if not torch.equal(stored.to(tensor.dtype), tensor) and not tensor.is_floating_point():
        raise ValueError(f"integers beyond 2^24 among the constants of {b.line}")
    role = f"constant{len(weights)}"
    weights[role] = b.weight(stored, value.origin, role)
    return {"weight": role, "dtype": kind, **({"expand": expand} if expand else {})}


def _view(x: Live) -> dict[str, Any]:
    """Say how torch's tensor is made of the value: permuted, then reshaped."""
    if x.axes is None or plain(x.axes):
        return {}
    factors = flat(x.axes)
    behind = iter(range(1, len(factors)))
    axes = [0 if f is None else next(behind) for f in factors]
    shape = [-1 if None in axis else axis[0] for axis in x.axes]
    return {"view": {"axes": axes, "shape": shape}}


def _result_view(axes: Axes) -> dict[str, Any]:
    factors = flat(axes)
    at = factors.index(None)
    return {
        "shape": [-1 if f is None else f for f in factors],
        "axes": [at, *(i for i in range(len(factors)) if i != at)],
    }


__all__ = ["Tracked", "convert"]
