"""A network as plain values for a file: its tensors, and what was done to them and to the attributes of its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewound.compaction import mending
from rewound.compaction.attention import NarrowMultiheadAttention
from rewound.compaction.coordinates import coordinates, memory_order
from rewound.compaction.rewriting import Rewritten
from rewound.compaction.surgery import before_edits, edits_of
from rewound.parameters import canonical

KEPT = "rewound/kept/"  # before AXIS/NAME: the index list of the survivors along an axis
SCALE = "rewound/scale/"  # before NAME: what the cut tensor is multiplied by
# A file names a class; only these are ever looked up.
_CLASSES: dict[str, type] = {
    "MultiheadAttention": nn.MultiheadAttention,
    "NarrowMultiheadAttention": NarrowMultiheadAttention,
}


@dataclass(frozen=True)
class Slot:
    """A place in a module that a parameter or buffer is in."""

    owner: nn.Module
    leaf: str
    parameter: bool

    @property
    def held(self) -> dict[str, Any]:
        return self.owner._parameters if self.parameter else self.owner._buffers

    @property
    def tensor(self) -> Tensor:
        return self.held[self.leaf]

    @property
    def persistent(self) -> bool:
        return self.parameter or self.leaf not in self.owner._non_persistent_buffers_set


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what ``rebuild_`` needs: plain values for JSON, and tensors on the CPU (index lists of survivors among them)."""
    _require_savable(model)
    where = coordinates(model)
    table: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    firsts: dict[int, str] = {}
    storages: set[int] = set()
    for name, slot in slots_of(model).items():
        tensor = slot.tensor
        first = firsts.setdefault(id(tensor), name)
        if first != name:
            table[first]["also"].append(name)
            continue
        row: dict[str, Any] = {"shape": list(where.shapes.get(name, tensor.shape)), "also": []}
        row |= {"requires_grad": tensor.requires_grad} if slot.parameter else {"persistent": slot.persistent}
        if (order := memory_order(tensor)) != list(range(tensor.ndim)):
            row["order"] = order
        if tensor.is_complex():
            row["complex"] = True
        row["kept"] = sorted(where.kept.get(name, {}))
        table[name] = row
        tensors[name] = _storable(tensor, storages)
        for axis, index in where.kept.get(name, {}).items():
            tensors[f"{KEPT}{axis}/{name}"] = index.cpu().contiguous().clone()
        if name in where.scale:
            row["around"] = where.scale[name].around
            tensors[f"{SCALE}{name}"] = where.scale[name].factor.cpu().contiguous().clone()
    before = before_edits(model)
    edits = [
        [path, name, _encoded(before[path, name]), _encoded(value)]
        for (path, name), value in edits_of(model).items()
    ]
    return {"tensors": table, "edits": edits}, tensors


def _require_savable(model: nn.Module) -> None:
    if isinstance(model, Rewritten):
        raise TypeError(
            "this network is a graph of operators (its class has a size written into its code), so no class can be filled with "
            "its tensors. Save the graph: torch.export.save(torch.export.export(small, args), 'small.pt2'); or let the line "
            "that the warning of rewound.compact named take the size from its tensors, and compact again"
        )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or name.endswith("_extra_state"):
            raise TypeError(
                f"the state dict has {name!r}, which is no parameter or buffer: only tensors can be saved"
            )
    for name, slot in slots_of(model).items():
        tensor = slot.tensor
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: run the model once, then save it")
        if hasattr(tensor, "to_local"):
            raise ValueError(
                f"{name!r} is sharded over processes: gather the model (full_tensor), then save it"
            )
        if tensor.is_meta:
            raise ValueError(f"{name!r} is on the meta device, so there are no values to save")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise TypeError(
                f"{name!r} is {tensor.layout} {tensor.dtype}: only dense tensors of numbers can be saved"
            )
        if name.startswith((KEPT, SCALE)):
            raise ValueError(f"the name {name!r} is reserved")


def _storable(tensor: Tensor, storages: set[int]) -> Tensor:
    """Return a dense row-major tensor on the CPU with a memory of its own, as safetensors wants it."""
    plain = tensor.detach().cpu()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    plain = plain.contiguous()
    whole = plain.untyped_storage()
    if whole.data_ptr() in storages or whole.nbytes() != plain.nbytes:
        plain = plain.clone()
    storages.add(plain.untyped_storage().data_ptr())
    return plain


def slots_of(model: nn.Module) -> dict[str, Slot]:
    """Return every name of every tensor -> where it is; parameters first."""
    found = {}
    for parameter in (True, False):
        for path, module in model.named_modules(remove_duplicate=False):
            held: Mapping[str, Any] = module._parameters if parameter else module._buffers
            for leaf, tensor in held.items():
                if tensor is not None:
                    found[canonical(f"{path}.{leaf}" if path else leaf)] = Slot(module, leaf, parameter)
    return found


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return {"list" if isinstance(value, list) else "tuple": [_encoded(v) for v in value]}
    if value is mending.Absent:
        return {"absent": True}
    if isinstance(value, mending.Added):
        return {"added": value.size}
    if isinstance(value, type) and _CLASSES.get(value.__name__) is value:
        return {"class": value.__name__}
    raise TypeError(f"an attribute was set to {value!r}, which the file has no form for")


def decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "class":
        if inner not in _CLASSES:
            raise ValueError(
                f"it names the class {inner!r}, which is not one that rewound puts into networks"
            )
        return _CLASSES[inner]
    if kind == "absent":
        return mending.Absent
    if kind == "added":
        return mending.Added(inner)
    return [decoded(v) for v in inner] if kind == "list" else tuple(decoded(v) for v in inner)
