"""The table of rules: which of torch's operators become operators of a Graph. A rule takes the arguments of torch's schema by
their names and returns what it made; ``Unknown`` sends the call to torch. What a rule does not name must be torch's default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewound.runtime.convert.build import Builder, Const, Live, Unknown
from rewound.runtime.convert.calls import Call

RULES: dict[str, tuple[Callable[..., Any], frozenset[str]]] = {}
# of no consequence for values
_IGNORED = {
    "device",
    "layout",
    "pin_memory",
    "non_blocking",
    "memory_format",
    "cudnn_enabled",
    "cudnn_enable",
    "copy",
    "implicit",
}


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for operators of aten, whatever their overloads."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        known = frozenset(list(inspect.signature(function).parameters)[1:])
        for name in names:
            assert name not in RULES, name
            RULES[name] = (function, known)
        return function

    return add


def apply(b: Builder, call: Call, arguments: dict[str, Any]) -> Any:
    """Return what the rule for a call makes of its arguments (Live and Const for tensors). ``Unknown`` if none knows it."""
    target = call.target
    namespace, name, _ = str(target).split(".")
    if namespace != "aten" or name not in RULES:
        raise Unknown("no rule")
    function, known = RULES[name]
    given = {}
    for argument in target._schema.arguments:
        default = argument.default_value if argument.has_default_value() else None
        value = arguments.get(argument.name, default)
        if argument.name in known:
            given[argument.name] = value
        elif argument.name not in _IGNORED and not _equal(value, default):
            raise Unknown(f"{argument.name}={value}")
    return function(b, **given)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (Live, Const)) or isinstance(b, (Live, Const)):
        return False
    return bool(a == b) or (not a and not b and isinstance(a, (list, tuple)))


def live(x: Any) -> Live:
    if not isinstance(x, Live):
        raise Unknown("a constant where a tensor is expected")
    return x


def const(x: Any) -> Const:
    if not isinstance(x, Const):
        raise Unknown("a tensor where a constant is expected")
    return x


def optional(x: Any) -> Const | None:
    return None if x is None else const(x)


def number(x: Any) -> float | int:
    """Return a number that does not depend on anything: a scalar, or a constant without axes."""
    if isinstance(x, Const):
        if x.value.ndim:
            raise Unknown("a tensor where a number is expected")
        x = x.value.item()
    if isinstance(x, bool):
        return int(x)
    if not isinstance(x, (int, float)):
        raise Unknown(f"{x} where a number is expected")
    return x


def whole(x: Any) -> int:
    if isinstance(x, bool) or not isinstance(x, int):
        raise Unknown(f"{x} where a fixed size is expected")
    return x


def many(x: Any, count: int) -> list[int]:
    """Return ``count`` fixed sizes from a list of them, of one, or one."""
    items = list(x) if isinstance(x, (list, tuple)) else [x]
    items = items * count if len(items) == 1 else items
    if len(items) != count:
        raise Unknown(f"{x} where {count} sizes are expected")
    return [whole(item) for item in items]


def both_sides(padding: Sequence[int]) -> list[int]:
    return [side for n in padding for side in (n, n)]


def require(known: Any, otherwise: str = "an argument that the rule does not know") -> None:
    if not known:
        raise Unknown(otherwise)


def real(dtype: Any) -> None:
    """Refuse an argument ``dtype`` that is no float."""
    require(dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point), f"dtype {dtype}")
