"""A compact network in one file, without pickle: safetensors, and in its header the JSON of what was done to the user's class.

    tensors     every parameter and buffer once, under its first name; where its survivors were, under "rewound/kept/AXIS/NAME"
    "rewound"   JSON: the format, the class's name, each tensor's original shape and other names, every changed attribute with
                its value before and after, and a SHA-256 of all that and of the tensors

Reading it runs no code from the file. What a class cannot know is in there, so no example input is needed (``rebuilding.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewound.compaction.describing import describe
from rewound.compaction.rebuilding import rebuild_
from rewound.parameters import unwrap_model

_FORMAT = 1
_PARTS = {"format", "class", "tensors", "edits", "sum"}


def save(small: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network to ``path``: the whole file or none of it, whatever happens meanwhile.

    small: what :func:`rewound.compact` returned, perhaps trained since, or compacted again; a network that was never compacted
    is welcome too. Written are parameters, buffers (also those that a state dict leaves out), which of them share memory
    and which are trained, the changed attributes and the coordinates. Not written: the class, hooks, mode.

    ``TypeError`` for a network that is no longer the user's class (a graph of operators: see the message), or that keeps
    something other than tensors in its state dict; ``ValueError`` for tensors without data here (meta, sharded).

    >>> import rewound, tempfile
    >>> def build():
    ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = build()
    >>> mask = rewound.prune(model, density=0.5, pattern="hidden unit", example=torch.ones(1, 4))
    >>> small = rewound.compact(model, mask, torch.ones(1, 4))
    >>> path = tempfile.mkdtemp() + "/small.safetensors"
    >>> rewound.save(small, path)
    >>> bool((rewound.load(build, path)(torch.ones(1, 4)) == small(torch.ones(1, 4))).all())
    True
    """
    model, path = unwrap_model(small), Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path.parent)!r} to save {path.name!r} in: make it first"
        )
    described, tensors = describe(model)
    description = {"format": _FORMAT, "class": type(model).__qualname__, **described}
    description["sum"] = _sum(description, tensors)
    _write(path, tensors, json.dumps(description))


def load(model_factory: Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """Return the network that :func:`rewound.save` wrote, built from the user's own class; no example is needed.

    model_factory: a function (or class) without arguments that builds the network as it was before it was first pruned;
    the values of its weights do not matter, so it may build it on the meta device (``with torch.device("meta"): ...``),
    which costs no memory. The file decides values, shapes, types, what is shared, what is trained (``requires_grad``) and
    the changed attributes; the factory the class, the device (the CPU instead of meta), hooks and mode.

    ``ValueError``, naming the file, if it is not of ``save``, truncated, altered, of a later version, or of another network
    (names, original shapes or attributes differ: it says which).

    >>> load(nn.Linear, "small.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: there is no file 'small.safetensors'
    """
    path = Path(path)
    if isinstance(model_factory, nn.Module) or not callable(model_factory):
        raise TypeError(
            f"'model_factory' must be a function that builds the network, such as lambda: Net(...) "
            f"(got {type(model_factory).__name__})"
        )
    description, tensors = _read(path)
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"'model_factory' must return a torch.nn.Module (got {type(model).__name__})")
    model = unwrap_model(model)
    try:
        rebuild_(model, description, tensors)
    except ValueError as error:
        raise ValueError(
            f"'{path}' holds a {description['class']}, and what 'model_factory' builds ({type(model).__qualname__}) is not the "
            f"network that it was made from: {error}"
        ) from error
    return model


def _write(path: Path, tensors: Mapping[str, Tensor], description: str) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata={"rewound": description})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get("rewound")
            description = None if text is None else json.loads(text)
            if isinstance(description, dict):
                _require_version(path, description)
                # Cloned: what safetensors gives is the file itself, mapped into memory.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' is not a file of rewound.save, or is truncated: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(
            f"'{path}' holds tensors, but not what rewound.save writes beside them; load them with safetensors.torch.load_file"
        )
    if not description.keys() >= _PARTS or description["sum"] != _sum(description, tensors):
        raise ValueError(
            f"'{path}' was altered after it was written: its checksum does not match. Save it again"
        )
    return description, tensors


def _require_version(path: Path, description: Mapping[str, Any]) -> None:
    found = description.get("format")
    if not isinstance(found, int) or found > _FORMAT:
        raise ValueError(
            f"'{path}' is of format {found}, and this version of rewound reads formats up to {_FORMAT}: update rewound to load it"
        )


def _sum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of everything but itself."""
    parts = {name: part for name, part in description.items() if name != "sum"}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
