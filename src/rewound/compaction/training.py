"""A graph for training mode beside that for evaluation: dropout that drops, batch norm that measures.

It is exported from the user's model as that one is, cut alike, and proven alike: masked and compact, in training mode and in
float64, return the same and leave the same statistics behind. Random numbers depend on shapes, so for the proof those of
dropout are replaced by their probability. What cannot be exported or proven is not trained, and the network says why.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rewound.compaction import proof
from rewound.compaction.coordinates import Coordinates
from rewound.compaction.coupling import Coupling, couple
from rewound.compaction.foreign import survivors
from rewound.compaction.rewriting import Code, Rewritten, code_of
from rewound.parameters import canonical


def training_code(
    model: nn.Module, example: Any, evaluating: Coupling, kept: Mapping[str, Tensor], biases: Mapping[str, str], dynamic: bool
) -> Code:  # fmt: skip
    """Return the graph of ``model`` in training mode without the units that leave it in evaluation mode.

    evaluating: what was read of the model in that mode. kept: group -> which of its units stay. biases: see ``rewritten``.
    ``ValueError``, or the error of the export, if there is none.
    """
    before = _host_random()
    coupling = couple(model, example, dynamic=dynamic, training=True)
    if _host_random() != before:
        raise ValueError(
            "its code draws random numbers outside torch, which a graph would have written into it"
        )
    if coupling.capture.program.graph_signature.buffers_to_mutate:
        raise ValueError("its code replaces buffers while it runs")
    gone = {name: ~units for name, units in kept.items()}
    if set(kept) - set(coupling.roots) or not _same(survivors(coupling, gone), survivors(evaluating, gone)):
        raise ValueError("in training mode other entries of its tensors leave with the same units")
    missing = set(coupling.capture.tensors.values()) - set(evaluating.capture.tensors.values())
    if missing:
        raise ValueError(f"it uses {min(missing)!r} in training mode only")
    return code_of(coupling, coupling.dead(kept), biases, training=True)


def require_same_in_training(
    small: Rewritten, masked: nn.Module, example: Any, where: Coordinates, copied: bool = False
) -> None:
    """``ValueError`` unless both return the same in training mode and leave the same buffers behind.

    copied: ``small`` is a float64 copy already.
    """
    expected, buffers = _run(masked, example)
    found, ours = _run(small, example, copied)
    for name in ours.keys() & buffers.keys():
        expected.append(where.cut(name, buffers[name]))
        found.append(ours[name])
    error = proof.difference(found, expected)
    if not error <= proof.TOLERANCE:
        raise ValueError(f"in training mode it differs from the masked model by {error:.3g}")


def _run(model: nn.Module, example: Any, copied: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return what a float64 copy gives in training mode, and its buffers afterwards."""
    double = model if copied else copy.deepcopy(model).double()
    buffers: dict[str, Tensor] = {}

    def remember(*_: Any) -> None:
        for name, buffer in double.named_buffers():
            buffers[canonical(name)] = buffer.detach().clone()

    handle = double.register_forward_hook(remember)
    try:
        with _AverageNoise():
            return proof.run_in_float64(double, example, copied=True, training=True), buffers
    finally:
        handle.remove()


class _AverageNoise(TorchDispatchMode):
    """Every draw of 0 or 1 is its probability, so that dropout multiplies by one, whatever the shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if func is torch.ops.aten.native_dropout.default:  # what a GPU runs
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        return func(*args, **(kwargs or {}))


def _same(a: Mapping[str, Mapping[int, Tensor]], b: Mapping[str, Mapping[int, Tensor]]) -> bool:
    return {(name, axis) for name in a for axis in a[name]} == {
        (name, axis) for name in b for axis in b[name]
    } and all(torch.equal(a[name][axis], b[name][axis]) for name in a for axis in a[name])


def _host_random() -> tuple[Any, ...]:
    """The state of Python's and NumPy's generators."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest
