"""What a file says was done to a network, done again to a fresh one of its class, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rewound.compaction import mending
from rewound.compaction.coordinates import Coordinates, Scale, in_order, remember
from rewound.compaction.describing import KEPT, SCALE, Slot, decoded, slots_of
from rewound.compaction.huggingface_config import own_config_
from rewound.compaction.surgery import keep_marks, note_edits
from rewound.parameters import named_modules
from rewound.spelling import closest


def rebuild_(model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make a fresh network, in place, the one that was described. ``ValueError``, before anything is changed, if it is another
    network."""
    table = description["tensors"]
    edits, before = {}, {}
    for path, name, old, new in description["edits"]:
        before[path, name], edits[path, name] = decoded(old), decoded(new)
    slots = slots_of(model)
    added = {
        f"{path}.{name}".lstrip(".") for (path, name), new in edits.items() if isinstance(new, mending.Added)
    }
    _require_same(slots, {name: row for name, row in table.items() if name not in added})
    _require_attributes(model, before)

    replaced: dict[int, tuple[Tensor, Tensor]] = {}
    for name, row in table.items():
        _put(model, slots, name, row, tensors[name], replaced)
    _refer(model, replaced)
    if any(name.startswith("config.") for _, name in edits):
        own_config_(model)
    mending.apply(model, edits)
    remember(model, _coordinates(table, tensors))
    note_edits(model, before, edits)


def _coordinates(table: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Coordinates:
    return Coordinates(
        {
            name: {axis: tensors[f"{KEPT}{axis}/{name}"] for axis in row["kept"]}
            for name, row in table.items()
        },
        {name: torch.Size(row["shape"]) for name, row in table.items()},
        {alias: name for name, row in table.items() for alias in row["also"]},
        {
            name: Scale(tensors[f"{SCALE}{name}"], row["around"])
            for name, row in table.items()
            if "around" in row
        },
    )


def _require_same(slots: Mapping[str, Slot], table: Mapping[str, Mapping[str, Any]]) -> None:
    names = {name: row for first, row in table.items() for name in (first, *row["also"])}
    for name, row in names.items():
        slot = slots.get(name)
        if slot is None:
            if row.get("persistent", True):
                near = closest(name, slots)
                raise ValueError(
                    f"it has no {name!r}" + (f" (nearest: {', '.join(map(repr, near))})" if near else "")
                )
        elif slot.parameter != ("requires_grad" in row):
            kinds = ("a buffer", "a parameter")
            raise ValueError(
                f"{name!r} is {kinds[slot.parameter]} in it, and {kinds[not slot.parameter]} in the file"
            )
        elif slot.persistent or row["kept"]:  # others are made by the code as it needs them
            shape = None if nn.parameter.is_lazy(slot.tensor) else list(slot.tensor.shape)
            if shape != row["shape"]:
                was = "is" if not row["kept"] else "was, before it was cut,"
                raise ValueError(
                    f"{name!r} is {shape or 'without a shape'} in it, and {was} {row['shape']} in the file"
                )
    more = [name for name, slot in slots.items() if name not in names and slot.persistent]
    if more:
        shown = ", ".join(map(repr, more[:3])) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
        raise ValueError(f"it has {shown}, and the file does not")


def _require_attributes(model: nn.Module, before: mending.Edits) -> None:
    modules = dict(named_modules(model))
    for (path, name), old in before.items():
        where = f"module {path!r}" if path else "the model"
        try:
            now = mending.read(modules[path], name)
        except (KeyError, AttributeError, IndexError, TypeError):
            now = mending.Absent
        if now is mending.Absent and old is not mending.Absent:
            raise ValueError(f"{where} has no attribute {name!r}, which was changed when units left")
        if now != old:
            raise ValueError(
                f"{name!r} of {where} is {_shown(now)} in it, and was {_shown(old)} before units left"
            )


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _put(
    model: nn.Module, slots: Mapping[str, Slot], name: str, row: Mapping[str, Any], tensor: Tensor,
    replaced: dict[int, tuple[Tensor, Tensor]],
) -> None:  # fmt: skip
    """Put one tensor of the file into all its places; ``replaced``: id of what was there -> (it, the new one)."""
    places = [slots[each] for each in (name, *row["also"]) if each in slots]
    old = places[0].tensor if places else None
    if row.get("complex"):
        tensor = torch.view_as_complex(tensor)
    tensor = in_order(tensor, row.get("order", list(range(tensor.ndim))))
    if old is not None and not old.is_meta:
        tensor = tensor.to(old.device)
    if "requires_grad" in row:
        tensor = nn.Parameter(tensor, requires_grad=row["requires_grad"])
        if old is not None:
            keep_marks(old, tensor)
    for slot in places:
        replaced[id(slot.tensor)] = slot.tensor, tensor
        slot.held[slot.leaf] = tensor
    if not places:  # a buffer that the code makes as it needs it, or a bias that the layer did not have
        path, _, leaf = name.rpartition(".")
        owner = dict(named_modules(model)).get(path)
        if owner is None:
            raise ValueError(f"it has no module {path!r}")
        if "requires_grad" in row:
            setattr(owner, leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=False)


def _refer(model: nn.Module, replaced: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Let whatever else in the modules held a tensor that was replaced hold the new one (flat weights, lists, attributes)."""

    def new(value: Any) -> Any:
        return replaced[id(value)][1] if id(value) in replaced else value

    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if type(value) in (list, tuple):
                if any(id(v) in replaced for v in value):
                    vars(module)[name] = type(value)(new(v) for v in value)
            elif type(value) is dict:
                value.update({key: new(v) for key, v in value.items() if id(v) in replaced})
            else:
                vars(module)[name] = new(value)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
        left = [
            n
            for n, t in [*module._buffers.items(), *vars(module).items()]
            if isinstance(t, Tensor) and t.is_meta
        ]
        if left:
            raise ValueError(
                f"{left[0]!r} of module {path!r} is on the meta device, and not in the file: build the network on the CPU"
            )
