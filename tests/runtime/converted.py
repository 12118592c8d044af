"""Convert a model, simplify it, and compare both graphs with the model in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rewound.compaction.capture import without_cache
from rewound.runtime import operators, reference, structure
from rewound.runtime.convert import convert
from rewound.runtime.graph import Graph
from rewound.runtime.simplify import simplify
from rewound.untouched import as_found, call_of


def compared(
    model: nn.Module, example: Any, *, batches: tuple[int, ...] = (1, 3), tolerance: float = 1e-10
) -> Graph:
    """Return the simplified graph of a model, once it has given what the model gives on batches other than the example's."""
    model = _lively(model).double().eval()
    example = tree_map(lambda t: t.double() if t.is_floating_point() else t, example)
    graph = convert(model, example)
    simple = simplify(graph)
    operators.check(simple)
    for images in (
        batches
        if graph.values[graph.inputs[0]].shape[0] is None
        else (graph.values[graph.inputs[0]].shape[0],)
    ):
        args, kwargs = tree_map(lambda t, n=images: _drawn(t, n), call_of(example))
        with as_found(model), without_cache(model):
            wanted = [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
        inputs = {
            name: x.numpy() for name, x in structure.bound(graph.structure["arguments"], args, kwargs).items()
        }
        for one in (graph, simple):
            outputs = reference.run(one, inputs)
            made = _arrays(structure.restored(one.structure["results"], outputs))
            assert [tuple(x.shape) for x in made] == [tuple(x.shape) for x in wanted]
            for x, y in zip(made, wanted):
                scale = max(1e-300, float(y.abs().max())) if y.numel() else 1.0
                assert np.isfinite(x).all()
                assert np.abs(x - y.numpy()).max(initial=0) <= tolerance * scale
    return simple


def ops(graph: Graph) -> dict[str, int]:
    """Return how many there are of each operator."""
    names = [node.op for node in graph.nodes]
    return {name: names.count(name) for name in sorted(set(names))}


def in_torch(graph: Graph) -> list[str]:
    return sorted({node.attributes["target"].split(".")[1] for node in graph.nodes if node.op == "torch"})


def _arrays(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [x for item in tree.values() for x in _arrays(item)]
    if isinstance(tree, (list, tuple)):
        return [x for item in tree for x in _arrays(item)]
    return [tree] if hasattr(tree, "shape") else []


def _lively(model: nn.Module) -> nn.Module:
    """Statistics and scales as after training: a batch norm that does nothing would hide mistakes."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def _drawn(like: Tensor, images: int) -> Tensor:
    """Return another tensor of so many images. A mask (zeros and ones) sees its first token."""
    shape = (images, *like.shape[1:])
    if like.is_floating_point():
        return torch.randn(shape, dtype=like.dtype)
    drawn = torch.randint(0, max(2, int(like.max()) + 1), shape, dtype=like.dtype)
    if int(like.max()) <= 1 and drawn.ndim > 1:
        drawn[:, 0] = 1
    return drawn
