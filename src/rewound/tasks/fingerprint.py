"""A fingerprint of the data that a task trains and validates on, so that a result says what it was found with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def fingerprint(parts: Iterable[Tensor | str]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of tensors (kind, shape, bytes) and texts, in order.

    >>> import torch
    >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2)]) != fingerprint([torch.zeros(2, 1)])
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            bits = (
                part.view(torch.int16) if part.dtype == torch.bfloat16 else part
            )  # which numpy does not know
            plain = bits.detach().cpu().contiguous().numpy()
            kind = "bfloat16" if part.dtype == torch.bfloat16 else plain.dtype
            digest.update(f"{kind}{plain.shape}".encode())
            digest.update(plain.data if plain.size else b"")
        else:
            digest.update(f"text {len(part.encode())} ".encode() + part.encode())
    return digest.hexdigest()[:16]


def fingerprint_of(task: Any) -> str | None:
    """Return ``task.fingerprint()``, or None of a task that has none: it is optional."""
    own = getattr(task, "fingerprint", None)
    return str(own()) if callable(own) else None
