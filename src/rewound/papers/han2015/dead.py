"""Units that lost all inputs, or all outputs, lose the rest of their connections. Han et al. 2015, section 3.5."""

from __future__ import annotations

import torch
from torch import Tensor

from rewound.compaction.units import Group, Slice, Structure
from rewound.mask import Mask


def without_dead(mask: Mask, structure: Structure) -> tuple[Mask, dict[str, int]]:
    """Return the mask without the connections of dead units, and group name -> how many of its units are dead.

    A unit without outputs is removed exactly. One without inputs gives the constant that its bias makes of it, and with its
    outputs that goes too: retrain afterwards, as the paper does, or let ``rewound.compact`` fold it instead. Units die in turn,
    layer by layer, until none is left to die. structure: ``rewound.find_units(model, example)``; tensors that the mask does not
    have count as whole.

    >>> import rewound
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> rows = torch.tensor([[True, True], [False, False], [True, False]])
    >>> mask = Mask({"0.weight": rows, "2.weight": torch.tensor([[True, True, False]])})
    >>> smaller, dead = without_dead(mask, rewound.find_units(model, torch.zeros(1, 2)))
    >>> smaller["2.weight"], smaller["0.weight"][2], dead
    (tensor([[ True, False, False]]), tensor([False, False]), {'0': 2})
    """
    kept = {name: tensor.clone() for name, tensor in mask.items()}
    while True:
        changed = False
        dead: dict[str, int] = {}
        for group in structure:
            gone = _dead(group, kept)
            dead[group.name] = int(gone.sum())
            for s in group.slices:
                if s.tensor in kept and gone.any():
                    lines = s.positions[gone].reshape(-1).to(kept[s.tensor].device)
                    part = kept[s.tensor].index_select(s.axis, lines)
                    changed |= bool(part.any())
                    kept[s.tensor].index_fill_(s.axis, lines, False)
        if not changed:
            return Mask(kept), {name: count for name, count in dead.items() if count}


def _dead(group: Group, kept: dict[str, Tensor]) -> Tensor:
    """Return which units have no input left, or no output."""
    gone = torch.zeros(group.size, dtype=torch.bool)
    for role in ("writes", "reads"):
        slices = [s for s in group.slices if s.role == role]
        if slices and all(s.tensor in kept for s in slices):
            gone |= ~torch.stack([_alive(s, kept[s.tensor]) for s in slices]).any(0)
    return gone


def _alive(s: Slice, tensor: Tensor) -> Tensor:
    return s.entries(tensor).any(1).cpu()
