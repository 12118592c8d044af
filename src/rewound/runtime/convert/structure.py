"""How a model's arguments and results were nested, as JSON; ``rewound.runtime.structure`` puts them together again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from rewound.untouched import call_of


def arguments_of(model: nn.Module, example: Any, names: list[str]) -> list[Any]:
    """Return one row an argument: {"name", "positional", "tree"}. names: of the tensors, in order."""
    args, kwargs = call_of(example)
    left = list(names)
    parameters = [p.name for p in inspect.signature(model.forward).parameters.values()]
    rows = []
    for i, value in enumerate(args):
        name = parameters[i] if i < len(parameters) else f"argument {i}"
        rows.append({"name": name, "positional": True, "tree": _tree(value, left)})
    # torch.export orders keyword arguments as forward declares them
    ordered = sorted(kwargs, key=lambda k: parameters.index(k) if k in parameters else len(parameters))
    rows += [{"name": k, "positional": False, "tree": _tree(kwargs[k], left)} for k in ordered]
    return rows


def _tree(value: Any, left: list[str]) -> Any:
    if isinstance(value, Tensor):
        return {"value": left.pop(0)}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_tree(item, left) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": {str(k): _tree(v, left) for k, v in value.items()}}
    return {"constant": value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)}


def results_of(spec: TreeSpec, leaves: list[Any]) -> Any:
    """Return the nesting of results: {"value": i, ...}, {"constant"}, {"tuple"}, {"list"}, {"dict"} or {"record", "fields"}."""
    left = list(leaves)

    def told(node: Any) -> Any:
        if node.is_leaf():
            return left.pop(0)
        children = [told(child) for child in _children(node)]
        if node.type in (tuple, list):
            return {"tuple" if node.type is tuple else "list": children}
        keys = _keys(node, len(children))
        if keys is None:
            return {"tuple": children}
        if isinstance(node.type, type) and node.type.__name__ in ("dict", "OrderedDict", "defaultdict"):
            return {"dict": dict(zip(keys, children))}
        return {"record": node.type.__name__, "fields": dict(zip(keys, children))}

    return told(spec)


def _children(spec: Any) -> list[Any]:
    return list(spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs)


def _keys(spec: Any, count: int) -> list[str] | None:
    context = spec.context
    if isinstance(context, type) and hasattr(context, "_fields"):
        return list(context._fields)
    fields = getattr(spec.type, "_fields", None)
    if fields:
        return list(fields)
    for candidate in (context, *(context if isinstance(context, (list, tuple)) else ())):
        if (
            isinstance(candidate, (list, tuple))
            and len(candidate) == count
            and all(isinstance(k, str) for k in candidate)
        ):
            return list(candidate)
    return None
