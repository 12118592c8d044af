"""Where every entry of a compact network was in the original one: the map that carries anything else over.

Weights of an earlier step, optimizer state, averages, masks: whatever has the shape of an original tensor is cut by the same
map as the network was, and whatever has the small shape can be put back into its place.

Where a norm's mean or an attention's scale follows a size that became smaller, the cut weights are multiplied by a factor
(``repairs.py``); the map has it too, so that the weights of any other step become those of the same smaller network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewound.parameters import unwrap_model

_ATTRIBUTE = "_rewound_coordinates"


@dataclass(frozen=True)
class Scale:
    """What a tensor is multiplied by after it is cut: w -> (w + around) * factor - around.

    factor: float64, of as many axes as the small tensor, each of its size or 1. around: 1 for a norm that multiplies by 1 + w.

    >>> double = Scale(torch.tensor([2.0]))
    >>> double.then(double)(torch.ones(3)), Scale(torch.tensor([2.0]), around=1)(torch.ones(3)).tolist()
    (tensor([4., 4., 4.]), [3.0, 3.0, 3.0])
    """

    factor: Tensor
    around: float = 0.0

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a floating tensor scaled, in its own dtype; masks and numbers as they are."""
        return self._by(tensor, self.factor)

    def undone(self, tensor: Tensor) -> Tensor:
        """Return what was scaled as it was."""
        return self._by(tensor, self.factor.reciprocal())

    def then(self, later: Scale) -> Scale:
        """Return both factors in one, ``later``'s after this."""
        if later.around != self.around:
            raise ValueError(f"factors around {self.around} and {later.around} of one tensor make no factor")
        return Scale(self.factor * later.factor, self.around)

    def cut(self, axes: Mapping[int, Tensor]) -> Scale:
        """Return the factor of what is left of the tensor when only these positions along these axes stay."""
        factor = self.factor
        for axis, index in axes.items():
            if factor.shape[axis] != 1:
                factor = factor.index_select(axis, index)
        return Scale(factor, self.around)

    def _by(self, tensor: Tensor, factor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return ((tensor.double() + self.around) * factor.to(tensor.device) - self.around).to(tensor.dtype)


@dataclass(frozen=True)
class Coordinates:
    """kept: tensor name -> axis -> int64 original index of every survivor, ascending; axes that lost nothing are absent.
    shapes: name -> original shape, of the tensors in ``kept``. aliases: other names of shared tensors -> the first.
    scale: name -> what is left of that tensor is multiplied by this.

    >>> at = Coordinates({"weight": {0: torch.tensor([0, 2])}}, {"weight": torch.Size([3, 2])})
    >>> at.cut("weight", torch.arange(6).reshape(3, 2)).tolist()
    [[0, 1], [4, 5]]
    >>> at.put_back("weight", torch.ones(2, 2)).tolist()
    [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """

    kept: Mapping[str, Mapping[int, Tensor]]
    shapes: Mapping[str, torch.Size]
    aliases: Mapping[str, str]
    scale: Mapping[str, Scale]

    def __init__(
        self,
        kept: Mapping[str, Mapping[int, Tensor]],
        shapes: Mapping[str, torch.Size],
        aliases: Mapping[str, str] | None = None,
        scale: Mapping[str, Scale] | None = None,
    ) -> None:
        object.__setattr__(self, "kept", {name: dict(axes) for name, axes in kept.items() if axes})
        object.__setattr__(self, "shapes", {name: torch.Size(shapes[name]) for name in self.kept})
        object.__setattr__(self, "aliases", dict(aliases or {}))
        object.__setattr__(self, "scale", dict(scale or {}))

    def cut(self, name: str, tensor: Tensor, *, scaled: bool = True) -> Tensor:
        """Return the survivors' entries of a tensor of the original shape; a copy, also where nothing was cut.

        Weights come out with the factor of their tensor, if it has one. scaled=False: what is no weight, such as an optimizer's
        moments. For a tensor with a factor those are *not* an exact continuation: a step of w moves factor * w by another
        length, and no state makes the two trainings the same.
        """
        name = self.aliases.get(name, name)
        axes = self.kept.get(name)
        if axes is None:
            return tensor.clone()
        if tensor.shape != self.shapes[name]:
            raise ValueError(
                f"{name!r} was {tuple(self.shapes[name])} in the original network, and this tensor is "
                f"{tuple(tensor.shape)}: only what has the original shape can be cut"
            )
        small = tensor
        for axis, index in axes.items():
            small = small.index_select(axis, index.to(tensor.device))
        if scaled and name in self.scale:
            small = self.scale[name](small)
        return in_order(small, memory_order(tensor))

    def put_back(self, name: str, small: Tensor, fill: float = 0, *, scaled: bool = True) -> Tensor:
        """Return a tensor of the original shape with ``small`` in its place (its factor undone) and ``fill`` elsewhere."""
        name = self.aliases.get(name, name)
        axes = self.kept.get(name)
        if axes is None:
            return small.clone()
        if scaled and name in self.scale:
            small = self.scale[name].undone(small)
        for axis, index in sorted(axes.items(), reverse=True):
            shape = list(small.shape)
            shape[axis] = self.shapes[name][axis]
            small = small.new_full(shape, fill).index_copy(axis, index.to(small.device), small)
        return small

    def cut_all(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Cut every tensor of a state dict (or any mapping by name) that has its original shape; keep the rest."""
        return {
            name: self.cut(name, value)
            if isinstance(value, Tensor) and value.shape == self.shapes.get(self.aliases.get(name, name))
            else value
            for name, value in tensors.items()
        }

    def then(self, later: Coordinates) -> Coordinates:
        """Return the map of two cuts, ``later`` made on the network that this one left."""
        kept = {name: dict(axes) for name, axes in self.kept.items()}
        shapes = dict(self.shapes)
        for name, axes in later.kept.items():
            shapes.setdefault(name, later.shapes[name])
            mine = kept.setdefault(name, {})
            for axis, index in axes.items():
                mine[axis] = mine[axis][index] if axis in mine else index
        scale = {name: factor.cut(later.kept.get(name, {})) for name, factor in self.scale.items()}
        for name, factor in later.scale.items():
            scale[name] = scale[name].then(factor) if name in scale else factor
        return Coordinates(kept, shapes, {**self.aliases, **later.aliases}, scale)

    def since(self, earlier: Coordinates) -> Coordinates:
        """Return the cuts made after ``earlier``, as a map of the network that it left: ``earlier.then`` of it is this one.

        >>> first = Coordinates({"w": {0: torch.tensor([1, 2, 5])}}, {"w": torch.Size([6])})
        >>> both = first.then(Coordinates({"w": {0: torch.tensor([0, 2])}}, {"w": torch.Size([3])}))
        >>> both.since(first).cut("w", torch.tensor([10, 20, 50])).tolist()
        [10, 50]
        """
        kept: dict[str, dict[int, Tensor]] = {}
        shapes = {}
        for name, axes in self.kept.items():
            before = earlier.kept.get(name, {})
            shape = list(self.shapes[name])
            for axis, index in before.items():
                shape[axis] = len(index)
            shapes[name] = torch.Size(shape)
            places = {
                a: torch.searchsorted(before[a], index) if a in before else index for a, index in axes.items()
            }
            kept[name] = {axis: index for axis, index in places.items() if len(index) < shape[axis]}
        scale = {}
        for name, factor in self.scale.items():
            if name in earlier.scale:
                undone = earlier.scale[name].cut(kept.get(name, {})).factor.reciprocal()
                factor = Scale(factor.factor * undone, factor.around)
            if bool((factor.factor != 1).any()):
                scale[name] = factor
        return Coordinates(kept, shapes, self.aliases, scale)

    def __repr__(self) -> str:
        rescaled = f", {len(self.scale)} of them rescaled" if self.scale else ""
        return f"Coordinates({len(self.kept)} tensors cut{rescaled})"


def memory_order(tensor: Tensor) -> list[int]:
    """Return the axes as they lie in memory, outermost first: of a channels-last image 0, 2, 3, 1."""
    if 0 in tensor.stride():  # expanded: several entries are one
        return list(range(tensor.ndim))
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))


def in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """Return the same tensor with its axes in this order in memory (itself, if they are)."""
    if memory_order(tensor) == order:
        return tensor
    laid = tensor.new_empty([tensor.shape[axis] for axis in order])
    return laid.permute([order.index(axis) for axis in range(tensor.ndim)]).copy_(tensor)


def coordinates(model: nn.Module) -> Coordinates:
    """Return where the entries of a compact network were in the original; of an ordinary network, that nothing was cut."""
    return getattr(unwrap_model(model), _ATTRIBUTE, None) or Coordinates({}, {})


def remember(model: nn.Module, new: Coordinates) -> None:
    """Note on a network that was just cut (perhaps not for the first time) where its entries were."""
    object.__setattr__(model, _ATTRIBUTE, coordinates(model).then(new))


def recall(model: nn.Module, where: Coordinates) -> None:
    """Note on a network that it is again what it was when its entries were there."""
    object.__setattr__(model, _ATTRIBUTE, where)
