"""Operators that run in torch: how a ``torch`` node says its call in JSON, and the call. torch is imported when one runs.

attributes
    target      "aten.cumsum.default"
    arguments   by the names of torch's schema; tensors and sizes stand in them as
                {"value": i, "dtype", "view"?}    the node's input i as torch's dtype; view {"axes", "shape"}: permuted, then
                                                  reshaped, because torch's tensor has its batch elsewhere
                {"weight": role, "dtype", "expand"?}
                {"batch": k}                      k times the batch
                {"dtype": name}
    output      which of several results
    view        {"shape", "axes"}: the result reshaped, then permuted, so that the batch comes first (-1 is the batch)
    line        where in the model's code
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewound.runtime.graph import Node, Value
from rewound.runtime.weights import Weight, dense


def run(
    node: Node, value: Value, inputs: Sequence[Any], weights: Mapping[str, Weight], dtype: Any = None
) -> Any:
    """Return what a ``torch`` node computes, a tensor of the whole batch.

    value: the node's own. inputs: tensors, float32 (int64, bool) as the Graph's values are. weights: the graph's. dtype: torch's
    to compute in instead of float32 (for references). ``ValueError``: a target that is no pure operator of torch's.
    """
    import torch

    target = resolve(str(node.attributes["target"]))
    floats = dtype or torch.float32
    images = int(inputs[0].shape[0]) if inputs else 1

    def kind(name: str) -> Any:
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"there is no dtype {name!r}")
        return floats if found.is_floating_point else found

    def decoded(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [decoded(item) for item in argument]
        if not isinstance(argument, Mapping):
            return argument
        if "value" in argument:
            x = inputs[argument["value"]].to(kind(argument["dtype"]))
            view = argument.get("view")
            return x.permute(view["axes"]).reshape(decoded(view["shape"])) if view else x
        if "weight" in argument:
            weight = torch.from_numpy(np.array(dense(weights[node.weights[argument["weight"]]])))
            weight = weight.to(kind(argument["dtype"]))
            return weight.expand(decoded(argument["expand"])) if "expand" in argument else weight
        if "batch" in argument:
            return int(argument["batch"]) * images
        if "dtype" in argument:
            return kind(argument["dtype"])
        raise ValueError(f"an argument {argument!r}")

    arguments = {name: decoded(argument) for name, argument in node.attributes["arguments"].items()}
    with torch.no_grad():
        result = target(**_spelled(target, arguments))
    if "output" in node.attributes:
        result = result[node.attributes["output"]]
    view = node.attributes.get("view")
    if view:
        result = result.reshape(view["shape"]).permute(view["axes"])
    return result.to(floats if value.dtype == "float32" else torch.int64)


def resolve(target: str) -> Any:
    """Return torch's operator of a name such as "aten.cumsum.default", if it only computes: reads tensors, writes nothing."""
    import torch

    namespace, name, overload = target.split(".")
    if not all(part.replace("_", "a").isalnum() for part in (namespace, name, overload)):
        raise ValueError(f"{target!r} is no name of an operator")
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"torch has no operator {target!r} here; import the library that brings it")
    schema = found._schema
    tensors = any("Tensor" in str(a.type) for a in schema.arguments)
    strings = any(str(a.type) == "str" and a.name in ("filename", "path") for a in schema.arguments)
    if schema.is_mutable or not tensors or strings:
        raise ValueError(f"{target!r} does more than compute: refused")
    return found


def _spelled(target: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    known = {a.name for a in target._schema.arguments}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(f"{target} has no argument {unknown[0]!r}")
    return dict(arguments)
