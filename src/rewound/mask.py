"""A mask: for every tensor in scope, which weights are kept.

A mask lies beside the model, never inside it. It is a value: it owns its tensors, is compared, combined,
saved and printed, and nothing changes it once it is made.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewound.parameters import canonical, local, local_like, unwrap_model, whole
from rewound.spelling import closest

_FORMAT = "rewound.mask/1"


class Mask(Mapping[str, Tensor]):
    """Immutable mapping from parameter name to a bool tensor of the parameter's shape; True = kept.

    ``tensors`` is a mapping or an iterable of (name, tensor) pairs. They are copied, one after the other:
    a generator never holds more than one tensor beside the mask. The order (that of the scope) is kept.
    Treat what you read out of a mask as read-only.

    ``units``: where whole units (channels, heads, blocks) were pruned, name -> (kept, size) in units. Half the channels is
    about a quarter of the weights, so the mask tells both. Equality and fingerprint are about the tensors alone.

    Raises TypeError for a tensor that is not bool, ValueError for a mask without tensors.

    >>> import torch
    >>> mask = Mask({"weight": torch.tensor([[True, False], [True, True]])})
    >>> mask
    Mask(density 0.750, 1 tensor, 3 of 4 kept)
    >>> layer = torch.nn.Linear(2, 2)
    >>> mask.apply_(layer)
    >>> int(layer.weight.count_nonzero())
    3
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        units: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
        self._tensors = {name: _owned(name, tensor) for name, tensor in pairs}
        if not self._tensors:
            raise ValueError("a mask needs at least one tensor (got none)")
        self._units = None if units is None else _counted(units)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # -- how much is kept --------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> dict[str, int]:
        """Kept weights of each tensor."""
        return {name: int(tensor.count_nonzero()) for name, tensor in self.items()}

    @property
    def kept(self) -> int:
        """Kept weights of all tensors together."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Weights of all tensors together, kept or pruned."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def density(self) -> float:
        """Kept / total, over all tensors."""
        return self.kept / self.size

    @property
    def densities(self) -> dict[str, float]:
        """Kept / total of each tensor."""
        return {name: kept / self[name].numel() for name, kept in self.counts.items()}

    @property
    def units(self) -> Mapping[str, tuple[int, int]] | None:
        """Name -> (kept, size) in units; None where single weights were pruned."""
        return None if self._units is None else MappingProxyType(self._units)

    @property
    def units_kept(self) -> int | None:
        """Kept units of all names together, or None."""
        return None if self._units is None else sum(kept for kept, _ in self._units.values())

    @property
    def units_size(self) -> int | None:
        """Units of all names together, kept or pruned, or None."""
        return None if self._units is None else sum(size for _, size in self._units.values())

    @property
    def unit_density(self) -> float | None:
        """Kept / total in units, or None where single weights were pruned."""
        return None if self._units is None else (self.units_kept or 0) / (self.units_size or 1)

    # -- comparing and combining -------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Return whether both keep the same weights of the same tensors; the order of the names does not
        matter."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(
            mine.shape == other[name].shape and torch.equal(mine, other[name].to(mine.device))
            for name, mine in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # equality ignores order; use .fingerprint as a key

    def __le__(self, other: Mask) -> bool:
        """Return whether this mask is nested in the other: it keeps nothing that the other has pruned."""
        return not any(
            bool((mine & ~theirs).any()) for mine, theirs in (pair for _, pair in self._pairs(other, "<="))
        )

    def __and__(self, other: Mask) -> Mask:
        """Keep what both keep."""
        return self._combined(
            other, Mask((name, mine & theirs) for name, (mine, theirs) in self._pairs(other, "&"))
        )

    def __or__(self, other: Mask) -> Mask:
        """Keep what either keeps."""
        return self._combined(
            other, Mask((name, mine | theirs) for name, (mine, theirs) in self._pairs(other, "|"))
        )

    def _combined(self, other: Mask, result: Mask) -> Mask:
        """Let the units of either side hold on where they are still true: where the result is that side."""
        for side in (self, other):
            if side._units is not None and result == side:
                result._units = side._units
                break
        return result

    def _pairs(self, other: Mask, sign: str) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        if not isinstance(other, Mask):
            raise TypeError(f"'{sign}' needs a Mask on both sides (got {type(other).__name__})")
        odd = sorted(self.keys() ^ other.keys())
        if odd:
            raise ValueError(f"'{sign}' needs masks of the same tensors; only one of them has {_some(odd)}")
        for name, mine in self.items():
            theirs = other[name]
            if mine.shape != theirs.shape:
                shapes = f"{tuple(mine.shape)} and {tuple(theirs.shape)}"
                raise ValueError(f"'{sign}' needs masks of equal shapes; {name!r} has {shapes}")
            yield name, (mine, theirs.to(mine.device))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, shapes and bits: equal masks, and only those, have equal fingerprints."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}\0{tuple(self[name].shape)}\0".encode())
            digest.update(_pack(self[name]).numpy().tobytes())
        return digest.hexdigest()

    # -- acting on a model -------------------------------------------------------------------------------

    def fits(self, model: nn.Module) -> bool:
        """Return whether ``model`` has every tensor of the mask, by name and shape."""
        shapes = {
            canonical(name): p.shape
            for name, p in unwrap_model(model).named_parameters(remove_duplicate=False)
        }
        return all(shapes.get(name) == tensor.shape for name, tensor in self.items())

    def apply_(self, model: nn.Module) -> None:
        """Set the pruned weights of ``model`` to zero, in place.

        Works on compiled, distributed, averaged and sharded models. NaN and inf under a pruned weight
        become zero too. Nothing is changed if a tensor is missing or of another shape (ValueError).
        """
        found = {
            canonical(name): p for name, p in unwrap_model(model).named_parameters(remove_duplicate=False)
        }
        for name, tensor in self.items():
            if name not in found:
                raise ValueError(
                    f"the mask has {name!r}, the model has no such parameter{_nearest(name, found)}"
                )
            if found[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)} in the mask, {tuple(found[name].shape)} in the model"
                raise ValueError(f"{name!r} is {shapes}: the mask belongs to another model")
        with torch.no_grad():
            for name, tensor in self.items():
                local(found[name]).masked_fill_(~local_like(tensor, found[name]), 0)

    # -- files -------------------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """Return the mask as a plain dict of strings, lists and bit-packed uint8 tensors (on the CPU)."""
        plain: dict[str, Any] = {
            "format": _FORMAT,
            "names": list(self),
            "shapes": [list(tensor.shape) for tensor in self.values()],
            "bits": [_pack(tensor) for tensor in self.values()],
            "fingerprint": self.fingerprint,
        }
        if self._units is not None:
            plain["units"] = {name: list(pair) for name, pair in self._units.items()}
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Mask:
        """Return the mask that ``to_plain`` wrote; ValueError if it is not one, or was altered since."""
        if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
            raise ValueError(f"not a mask: a mapping with 'format' == {_FORMAT!r} is needed")
        try:
            rows = zip(plain["names"], plain["shapes"], plain["bits"])
            mask = cls(((name, _unpack(bits, shape)) for name, shape, bits in rows), units=plain.get("units"))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"not a mask, or a damaged one: {error}") from error
        if mask.fingerprint != plain.get("fingerprint"):
            raise ValueError("the mask was altered after it was written: its fingerprint does not match")
        return mask

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask to ``path``, one bit a weight: the whole file or none of it, whatever happens
        meanwhile."""
        plain = self.to_plain()
        _write_atomically(Path(path), lambda file: torch.save(plain, file))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """Read a mask (onto the CPU). ValueError, naming the file, if it is not one or is truncated or
        altered."""
        with open(path, "rb") as file:
            try:
                plain = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch.load raises a dozen kinds for a file that is not its own
                raise ValueError(f"'{path}' is not a mask file, or is truncated: {_first(error)}") from error
        try:
            return cls.from_plain(plain)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from error

    # -- printing ----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        tensors = f"{len(self)} tensor{'s' if len(self) > 1 else ''}"
        units = ""
        if self._units is not None:
            units = f"; {self.unit_density:.3f} of units, {self.units_kept:,} of {self.units_size:,}"
        return f"Mask(density {self.density:.3f}, {tensors}, {self.kept:,} of {self.size:,} kept{units})"

    def __str__(self) -> str:
        rows = [("tensor", "shape", "kept", "size", "density")]
        rows += [
            (name, "x".join(map(str, t.shape)), f"{self.counts[name]:,}", f"{t.numel():,}", f"{density:.4f}")
            for (name, t), density in zip(self.items(), self.densities.values())
        ]
        rows.append(("all", "", f"{self.kept:,}", f"{self.size:,}", f"{self.density:.4f}"))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
            for row in rows
        ]
        for name, (kept, size) in (self._units or {}).items():
            lines.append(f"units of {name}: {kept:,} of {size:,}")
        return "\n".join(line.rstrip() for line in lines)


def _owned(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype is not torch.bool:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(
            f"the mask of {name!r} must be a bool tensor, True = kept (got {got}): pass tensor != 0"
        )
    if tensor.numel() == 0:
        raise ValueError(f"the mask of {name!r} is empty: leave the tensor out")
    return whole(tensor.detach()).clone(memory_format=torch.contiguous_format)


def _counted(units: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    found = {}
    for name, pair in units.items():
        kept, size = pair
        if not (type(kept) is int and type(size) is int and 0 <= kept <= size and size > 0):
            raise ValueError(f"the units of {name!r} must be (kept, size) in whole numbers (got {pair!r})")
        found[name] = (kept, size)
    return found


def _pack(tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(tensor.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    size = int(np.prod(shape, dtype=np.int64))
    if bits.dtype is not torch.uint8 or bits.numel() != (size + 7) // 8:
        raise ValueError(f"{bits.numel()} bytes of {bits.dtype} cannot be {size} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool)).reshape(shape)


def _write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = closest(name, known, count=3)
    return f" (nearest: {', '.join(map(repr, near))})" if near else ""


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
