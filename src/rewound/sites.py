"""Where in a running network the units of a group can be seen: which modules read them, and along which axis.

The map of a channel is what the next layers read: after batch norm, activation function and pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from torch import Tensor, nn

from rewound.compaction.units import Group, Slice, Structure
from rewound.parameters import named_modules, parameters_by_name

Axes: TypeAlias = "tuple[int, int]"  # of the units, of the examples
_Owners: TypeAlias = (
    "dict[str, list[tuple[str, str, nn.Module]]]"  # parameter -> (its module, its name there, module)
)


@dataclass(frozen=True)
class Site:
    """One tensor in which the units of a group can be seen.

    module: whose first input (``reads``) or output it is. axis: the axis of the units, counted from the end. positions:
    int64 [units, k] along it. examples: the axis of the examples.
    """

    group: str
    module: str
    reads: bool
    axis: int
    positions: Tensor
    examples: int = 0


def find_sites(model: nn.Module, structure: Structure) -> list[Site]:
    """Return where the units of each group can be seen: the first input of every module that reads them.

    Known readers: (transposed) convolutions that are not grouped, linear layers, Hugging Face's Conv1D, the first layer of
    recurrent modules. If another module reads the group too, the sites are the outputs of the modules that write it, before
    any norm and activation function; if one of those is not known either (a recurrent layer), the known readers alone.
    ValueError, naming the group, if nothing is left.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    >>> unit = torch.tensor([[0], [1]])
    >>> group = Group("0", "hidden unit", 2, (Slice("0.weight", 0, unit, "writes"), Slice("2.weight", 1, unit, "reads")))
    >>> [(site.module, site.reads, site.axis) for site in find_sites(net, Structure((group,), {}, frozenset()))]
    [('2', True, -1)]
    """
    owners = _owners(model)
    return [site for group in structure for site in _sites(group, owners)]


# -- which modules read and write a group ----------------------------------------------------------------


def _owners(model: nn.Module) -> _Owners:
    names = {id(p): name for name, p in parameters_by_name(model).items()}
    owners: _Owners = {}
    for name, module in named_modules(model):
        for leaf, p in module._parameters.items():
            if p is not None:
                owners.setdefault(names[id(p)], []).append((name, leaf, module))
    return owners


def _sites(group: Group, owners: _Owners) -> list[Site]:
    readers = [s for s in group.slices if s.role == "reads"]
    read = [_known(group, s, owners, _input_axes, reads=True) for s in readers]
    written = [_known(group, s, owners, _output_axes, reads=False) for s in group.writers]
    if read and all(read):
        return _distinct(read)
    if written and all(written):
        return _distinct(written)
    if any(read):
        return _distinct(read)
    tensors = ", ".join(repr(s.tensor) for s in (*readers, *group.writers)) or "nothing"
    raise ValueError(
        f"the feature maps of {group.name!r} cannot be seen: no module that is known reads or writes it by itself (its "
        f"tensors: {tensors}); criterion 'taylor-weights' needs no feature maps"
    )


def _distinct(found: list[list[Site]]) -> list[Site]:
    """Return each place once: both directions of a recurrent layer read the same input."""
    places = {(s.module, s.reads, s.axis, tuple(s.positions.reshape(-1).tolist())): s for s in chain(*found)}
    return list(places.values())


def _known(
    group: Group,
    part: Slice,
    owners: _Owners,
    axes_of: Callable[[nn.Module, str, int], Axes | None],
    *,
    reads: bool,
) -> list[Site]:
    found = []
    for name, leaf, module in owners.get(part.tensor, ()):
        axes = axes_of(module, leaf, part.axis)
        if axes is not None:
            found.append(Site(group.name, name, reads, axes[0], part.positions, axes[1]))
    return found


def _input_axes(module: nn.Module, leaf: str, axis: int) -> Axes | None:
    """Return the axes of a module's first input that ``axis`` of its parameter reads, if that is known."""
    if leaf == "weight" and axis == _input_axis(module) and getattr(module, "groups", 1) == 1:
        return _feature_axis(module), 0
    if isinstance(module, nn.RNNBase) and leaf.startswith("weight_ih_l0") and axis == 1:
        return -1, 0 if module.batch_first else 1
    if isinstance(module, nn.RNNCellBase) and leaf == "weight_ih" and axis == 1:
        return -1, 0
    return None


def _output_axes(module: nn.Module, leaf: str, axis: int) -> Axes | None:
    reads = _input_axis(module)
    known = leaf == "weight" and reads is not None and axis == 1 - reads
    if not known or (axis == 1 and getattr(module, "groups", 1) != 1):
        return None
    return _feature_axis(module), 0


def _input_axis(module: nn.Module) -> int | None:
    """Return the axis of the weight along which a convolution or linear layer reads; the other one of 0 and 1 it writes."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 1
    hugging_face = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return 0 if hugging_face or isinstance(module, nn.modules.conv._ConvTransposeNd) else None


def _feature_axis(module: nn.Module) -> int:
    """Return the axis of the channels or features, from the end (an input may come without examples)."""
    return -1 - len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else -1
