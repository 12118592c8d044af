"""What a layer reads and writes at sampled places: patches of its input, its output, and what is added to that.

The same places are drawn for the original and for the pruned network: they follow from seed, layer and batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rewound.parameters import named_modules
from rewound.untouched import call_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Samples:
    """Of one layer, over all images and places: rows.

    outputs: [rows, n] as the layer leaves them. inputs: [rows, columns of the weight seen as [n, columns]], where they were
    asked for. norm: name of the batch norm that follows directly. added: [rows, n], what is added right after (after that
    norm); None if nothing is.
    """

    outputs: Tensor
    inputs: Tensor | None
    norm: str | None
    added: Tensor | None


def readable(module: nn.Module) -> bool:
    """Return whether patches of the module's input can be laid beside its weight: linear layers and plain convolutions."""
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def take_samples(
    model: nn.Module,
    layers: Iterable[str],
    batches: Iterable[tuple[Any, Any]],
    *,
    places: int,
    seed: int,
    inputs: Iterable[str] = (),
) -> dict[str, Samples]:
    """Run ``model`` on the inputs of ``batches`` and return name -> Samples of ``layers``, on the CPU.

    places: places drawn from each image's output map, with replacement, as in the authors' code; all of them where the map
    has no more. inputs: the layers whose input patches are wanted as well.
    """
    taps = _Taps(model, dict.fromkeys(layers), set(inputs), places, seed)
    with taps.listening(), torch.no_grad():
        for number, (given, _) in enumerate(batches):
            taps.begin(number)
            args, kwargs = call_of(given)
            model(*args, **kwargs)
    return taps.collected()


class _Taps(TorchFunctionMode):
    """Collects samples while a model runs. It follows a layer's output by identity: into a norm, and into a sum."""

    def __init__(
        self, model: nn.Module, layers: Iterable[str], inputs: set[str], places: int, seed: int
    ) -> None:
        super().__init__()
        self._modules = dict(named_modules(model))
        self._layers, self._inputs, self._places, self._seed = list(layers), inputs, places, seed
        self._batch = 0
        self._drawn: dict[str, Tensor] = {}  # layer -> places [images, places] in this batch
        self._ends: dict[str, Tensor] = {}  # layer -> the tensor that carries its output on
        self._norms: dict[str, str] = {}
        self._rows: dict[tuple[str, str], list[Tensor]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = []
        for name in self._layers:
            handles.append(self._modules[name].register_forward_hook(self._layer_hook(name)))
        for name, module in self._modules.items():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                handles.append(module.register_forward_hook(self._norm_hook(name)))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, batch: int) -> None:
        self._batch = batch
        self._drawn.clear()
        self._ends.clear()

    def collected(self) -> dict[str, Samples]:
        if not self._rows:
            raise ValueError(
                "'batches' yielded nothing (a generator that was used up?): pass a list or a loader"
            )
        found = {}
        for name in self._layers:
            rows = {what: torch.cat(parts) for (layer, what), parts in self._rows.items() if layer == name}
            complete = "added" in rows and len(rows["added"]) == len(rows["outputs"])
            found[name] = Samples(
                rows["outputs"],
                rows.get("inputs"),
                self._norms.get(name),
                rows["added"] if complete else None,
            )
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("add", "add_") and len(args) == 2 and not kwargs:
            for name, end in list(self._ends.items()):
                for one, other in (args, args[::-1]):
                    if one is end and isinstance(other, Tensor) and other.shape == one.shape:
                        self._keep(name, "added", self._at(name, other))
                        del self._ends[name]
                        break
        return func(*args, **kwargs)

    def _layer_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            space = output.shape[2:] if isinstance(module, _CONVOLUTIONS) else output.shape[1:-1]
            self._drawn[name] = self._draw(name, len(output), space.numel())
            self._ends[name] = output
            self._keep(name, "outputs", self._at(name, output))
            if name in self._inputs:
                self._keep(name, "inputs", _patches(module, args[0], space, self._drawn[name]))

        return hook

    def _norm_hook(self, norm: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            for name, end in self._ends.items():
                if args[0] is end:
                    self._ends[name], self._norms[name] = output, norm

        return hook

    def _draw(self, name: str, images: int, positions: int) -> Tensor:
        if positions <= self._places:
            return torch.arange(positions).expand(images, positions)
        digest = hashlib.sha256(f"{self._seed}:{name}:{self._batch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randint(positions, (images, self._places), generator=generator)

    def _at(self, name: str, output: Tensor) -> Tensor:
        """What ``output`` has at the places of layer ``name``: [images * places, n]."""
        convolution = isinstance(self._modules[name], _CONVOLUTIONS)
        flat = output.flatten(2) if convolution else output.reshape(len(output), -1, output.shape[-1]).mT
        where = self._drawn[name].to(output.device)[:, None, :].expand(-1, flat.shape[1], -1)
        return flat.gather(2, where).mT.reshape(-1, flat.shape[1])

    def _keep(self, name: str, what: str, rows: Tensor) -> None:
        self._rows.setdefault((name, what), []).append(rows.detach().cpu())


def _patches(module: nn.Module, given: Tensor, space: torch.Size, drawn: Tensor) -> Tensor:
    """What the layer reads for the outputs at ``drawn`` [images, places]: [images * places, columns of its weight]."""
    drawn = drawn.to(given.device)
    if isinstance(module, nn.Linear):
        flat = given.reshape(len(given), -1, given.shape[-1])
        return flat.gather(1, drawn[..., None].expand(-1, -1, flat.shape[-1])).reshape(-1, flat.shape[-1])
    assert isinstance(module, _CONVOLUTIONS)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    corners = torch.unravel_index(drawn, space)
    flat, columns = padded.flatten(2), []
    for offset in product(*(range(k) for k in module.kernel_size)):
        place = torch.zeros_like(drawn)
        for axis, corner in enumerate(corners):
            along = corner * module.stride[axis] + offset[axis] * module.dilation[axis]
            place = place * padded.shape[2 + axis] + along
        columns.append(flat.gather(2, place[:, None, :].expand(-1, flat.shape[1], -1)))
    return torch.stack(columns, dim=2).permute(0, 3, 1, 2).reshape(drawn.numel(), -1)
