"""What benchmarks of the sparse engine share: masks, and one comparison with ONNX Runtime and OpenVINO, dense, in turns.

Dense runtimes do not look at values, so they are measured once for all masks of a network, in the same rounds.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rewound
from rewound.measure import cost, machine
from rewound.measure.bench.networks import Flat, Zeros, in_float32, in_float64, largest_error, tensors_of
from rewound.measure.bench.runtimes import RUNTIMES, quiet
from rewound.measure.bench.turns import Turns, take_turns
from rewound.measure.latency import of_batch

PEERS = ("onnxruntime", "openvino")
UNIFORM, UNEVEN, PAIRS, FOURS = "uniform", "one global threshold", "2x1", "4x1"
OUTPUTS = 64  # so many numbers at least are looked at for errors


def masked(model: nn.Module, kind: str, sparsity: float) -> tuple[nn.Module, Any]:
    """Return a copy of the model with zeros, and its mask (None at sparsity 0).

    Stems (convolutions of one or three channels) and depthwise convolutions stay dense, and so do embeddings. Weights go by
    magnitude, which for initial weights is at random; "uniform": the same share of every layer; "one global threshold":
    across layers, whose initial spread differs, so that shares do too; "2x1", "4x1": as many rows of a column together, uniform.
    """
    pruned = copy.deepcopy(model)
    if sparsity == 0:
        return pruned, None
    mask = rewound.prune(
        pruned,
        1 - sparsity,
        pattern=kind if kind in (PAIRS, FOURS) else "weight",
        allocation="global" if kind == UNEVEN else "uniform",
        scope=rewound.find_scope(pruned, exclude=stay_dense(pruned) or None),
    )
    mask.apply_(pruned)
    return pruned, mask


def stay_dense(model: nn.Module) -> list[str]:
    """Return the names of weights that no mask touches, embeddings aside."""
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return [f"{name}.weight" for name, m in convolutions if m.in_channels <= 3 or m.groups > 1]


def measured(
    model: nn.Module,
    example: Any,
    masks: Sequence[tuple[str, float]],
    *,
    batch: int = 1,
    threads: Sequence[int] = (1,),
    rounds: int = 9,
    seconds: float = 40.0,
) -> dict[str, Any]:
    """Return turns of the dense peers and of the engine with every mask and number of threads, and the engine's errors.

    "peers": name -> threads -> times; "masks": one entry each, with "engine": threads -> times or {"failed": why}.
    """
    networks = ((kind, sparsity, *masked(model, kind, sparsity)) for kind, sparsity in masks)
    return _in_turns(model, networks, of_batch(example, batch), batch, threads, rounds, seconds)


def compared(
    networks: Mapping[str, nn.Module], example: Any, *, batch: int = 1, rounds: int = 9, seconds: float = 40.0
) -> dict[str, Any]:
    """Return the same as :func:`measured` of networks by name, which have the zeros that they have, on one thread.

    The peers run the first one.
    """

    def given() -> Iterator[tuple[str, float, nn.Module, Mapping[str, Tensor]]]:
        for name, model in networks.items():
            weights, pruned = dict(model.named_parameters()), rewound.find_scope(model).names
            yield name, Zeros.of(model).share, model, {n: weights[n].detach() != 0 for n in pruned}

    first = next(iter(networks.values()))
    return _in_turns(first, given(), of_batch(example, batch), batch, (1,), rounds, seconds)


def _in_turns(
    dense: nn.Module,
    networks: Iterable[tuple[str, float, nn.Module, Any]],
    inputs: Any,
    batch: int,
    threads: Sequence[int],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    found: dict[str, Any] = {"batch": batch, "peers": {}, "masks": []}
    with tempfile.TemporaryDirectory() as place, machine.on_cores(max(threads)):
        folder = Path(place)
        for name in PEERS:
            if not RUNTIMES[name].missing:
                for count in threads:
                    calls[name, count] = _made(name, dense, inputs, count, folder)[0]
        for index, (kind, sparsity, pruned, mask) in enumerate(networks):
            entry: dict[str, Any] = {
                "kind": kind,
                "sparsity": sparsity,
                "zeros": Zeros.of(pruned).share,
                "multiply_adds": cost.flops(pruned, inputs, mask) // 2,
                "dense_multiply_adds": cost.flops(pruned, inputs) // 2,
                "engine": {},
            }
            found["masks"].append(entry)
            for count in threads:
                try:
                    began = time.process_time()
                    call, bind = _made("engine", pruned, inputs, count, folder, f"{index}-{count}")
                    entry["compile_seconds"] = time.process_time() - began
                    entry |= _errors(pruned, inputs, bind)
                    calls[f"engine {index}", count] = call
                except Exception as error:  # named in the record, and the other masks go on
                    entry["engine"][str(count)] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        taken = take_turns(calls, rounds=rounds, seconds=seconds)
    for (name, count), turns in taken.items():
        if name in PEERS:
            found["peers"].setdefault(name, {})[str(count)] = _plain(turns)
        else:
            found["masks"][int(name.split()[1])]["engine"][str(count)] = _plain(turns)
    return found


def _made(
    runtime: str, model: nn.Module, inputs: Any, threads: int, folder: Path, name: str = "dense"
) -> tuple[Callable[[], Any], Any]:
    """Return a call on the inputs, and the bind it is of."""
    flat, tensors = Flat(model, inputs).eval(), tensors_of(inputs)
    with quiet():
        bind = RUNTIMES[runtime].make(flat, tensors, threads, folder / f"{name}{RUNTIMES[runtime].suffix}")
    arrays = [tensor.numpy() for tensor in tensors]
    call = bind(arrays)
    if runtime != "engine":
        with torch.no_grad():
            error = largest_error(call(), [y.double().numpy() for y in flat(*tensors)])
        if error > 1e-3:
            raise ValueError(f"{runtime}'s outputs differ from torch's by {error:.1e} (relative)")
    return call, bind


def _errors(model: nn.Module, inputs: Any, bind: Any) -> dict[str, float]:
    """Return the engine's largest error against float64 over several inputs, and torch's in float32.

    Of a large batch, some rows are looked at: rows do not meet in a network in evaluation mode.
    """
    engine = plain = 0.0
    generator = torch.Generator().manual_seed(1)
    outputs = sum(np.size(y) for y in bind([tensor.numpy() for tensor in tensors_of(inputs)])())
    batch = len(tensors_of(inputs)[0])
    draws = 2 if batch > 1 else min(16, max(3, OUTPUTS * batch // outputs))
    some = torch.linspace(0, batch - 1, min(batch, max(2, OUTPUTS * batch // (draws * outputs)), 16)).long()
    for _ in range(draws):
        drawn = tuple(_like(tensor, generator) for tensor in tensors_of(inputs))
        rows = tuple(tensor[some] for tensor in drawn)
        flat = Flat(model, rows if len(rows) > 1 else rows[0]).eval()
        expected = in_float64(flat, rows)
        given = [y[some.numpy()] for y in bind([tensor.numpy() for tensor in drawn])()]
        engine = max(engine, largest_error(given, expected))
        plain = max(plain, largest_error(in_float32(flat, rows), expected))
    return {"error": engine, "torch_error": plain}


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator)
    return torch.randint(int(tensor.max()) + 1, tensor.shape, generator=generator, dtype=tensor.dtype)


def _plain(turns: Turns) -> dict[str, Any]:
    return {
        "wall_ms": [1e3 * t for t in turns.wall],
        "cpu_ms": [1e3 * t for t in turns.cpu],
        "p95_ms": 1e3 * turns.p95,
    }
