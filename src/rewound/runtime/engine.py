"""A compiled network: checks what it is given, runs its parts in order, gives back what the model would have given."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rewound.runtime import reference, structure
from rewound.runtime.graph import Graph
from rewound.runtime.parts import Alone, Native, Part
from rewound.runtime.planning.lower import Unplanned
from rewound.runtime.planning.segments import segments

if TYPE_CHECKING:
    from rewound.runtime.report import Report

Array = NDArray[Any]
_told = False


def native_module() -> Any:
    """Return the native module, or ``None`` where the package was installed without a compiler (a warning says so, once)."""
    try:
        from rewound.runtime import _native
    except ImportError:
        global _told
        if not _told:
            _told = True
            warnings.warn(
                "rewound's native module is not there (no compiler when it was installed?): engines compute in numpy, slowly; "
                "install a C++ compiler and reinstall",
                RuntimeWarning,
                stacklevel=4,
            )
        return None
    return _native


class Engine:
    """What ``compile`` and ``load`` return: call it as the model was called, with numpy arrays or torch tensors.

    Arrays in, arrays out; a tensor among the inputs, tensors out. Results are float32 (integers and booleans as the model's)
    and never share memory with the engine. Any number of threads may call one engine. Two calls give the same bits whatever
    ``threads`` is. Copies and pickles are made of the graph, and packed anew.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int = 1,
        batch: int | None = None,
        dynamic_batch: bool = True,
        autotune: bool = False,
    ) -> None:
        """batch: images to prepare for (1), and the only number there can be unless ``dynamic_batch``."""
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise ValueError(f"'threads' must be a number from 1 to 1024 (got {threads!r})")
        fixed = graph.values[graph.inputs[0]].shape[0] if graph.inputs else None
        self.graph, self.threads = graph, threads
        self.batch = fixed if fixed is not None else batch
        self.dynamic_batch = dynamic_batch and fixed is None
        self.autotune = autotune
        self._native = native_module()
        self._parts: list[Part] = self._prepared() if self._native is not None else []
        self._dtypes = _dtypes(graph.structure, len(graph.outputs))
        self._short = _Short.of(self)

    def _prepared(self) -> list[Part]:
        """Cut the graph where native operators end, and pack programs for the batch that is expected."""
        apart: dict[str, str] = {}
        ready: dict[tuple[str, ...], Native] = {}
        while True:
            parts: list[Part] = []
            try:
                for segment in segments(self.graph, apart):
                    if segment.alone:
                        parts.append(Alone(segment.graph, apart.get(segment.graph.nodes[0].output, "")))
                        continue
                    key = tuple(node.output for node in segment.graph.nodes)
                    if key not in ready:
                        ready[key] = Native(segment.graph, self._native, self.autotune)
                        ready[key].prepare(self.batch or 1)
                    parts.append(ready[key])
                return parts
            except Unplanned as error:
                apart[error.output] = str(error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's results for a batch.

        ``TypeError``: other arguments than the model's, or arrays of another kind. ``ValueError``: other shapes. ``IndexError``:
        an id beyond its table.
        """
        if self._short is not None and len(args) == 1 and not kwargs:
            result = self._short(args[0])
            if result is not None:
                return result
        given, tensors = self._inputs(args, kwargs)
        outputs = self._run(given)
        results: list[Any] = [x.astype(dtype, copy=False) for x, dtype in zip(outputs, self._dtypes)]
        if tensors:
            torch = sys.modules["torch"]
            results = [torch.from_numpy(np.ascontiguousarray(x)) for x in results]
        plain = self.graph.structure
        if not plain:
            return results[0] if len(results) == 1 else tuple(results)
        return structure.restored(plain["results"], results)

    def _run(self, given: Mapping[str, Array]) -> list[Array]:
        graph = self.graph
        images = len(given[graph.inputs[0]])
        known = dict(given)
        if self._native is None:
            known |= dict(zip(graph.outputs, reference.run(graph, given, np.float32)))
        elif images == 0 and all(graph.values[name].shape[:1] == (None,) for name in graph.outputs):
            known |= {name: self._empty(name) for name in graph.outputs}
        else:
            for part in self._parts:
                part.run(known, images, self.threads)
        results: list[Array] = []
        for name in graph.outputs:  # one that is a result twice, or an input too, is copied
            taken = (*given.values(), *results)
            x = known[name]
            results.append(x.copy() if any(np.may_share_memory(x, other) for other in taken) else x)
        return results

    def _empty(self, name: str) -> Array:
        value = self.graph.values[name]
        return np.empty((0, *(n or 0 for n in value.shape[1:])), value.dtype)

    # -- what is given --------------------------------------------------------------------------------------------------

    def _inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Array], bool]:
        plain = self.graph.structure
        rows = (
            plain["arguments"]
            if plain
            else [{"name": n, "positional": True, "tree": {"value": n}} for n in self.graph.inputs]
        )
        found = structure.bound(rows, args, kwargs)
        tensors = any(_is_tensor(x) for x in found.values())
        given = {name: self._checked(name, found[name]) for name in self.graph.inputs}
        counts = {len(x) for x in given.values()}
        if len(counts) > 1:
            told = ", ".join(f"{name}: {len(x)}" for name, x in given.items())
            raise ValueError(f"inputs have different batches ({told}); give them the same")
        (count,) = counts or {0}
        if self.batch is not None and not self.dynamic_batch and count != self.batch:
            why = (plain or {}).get("batch") or "it was compiled with dynamic_batch=False"
            raise ValueError(f"a batch of {count}; this engine takes batches of {self.batch}: {why}")
        return given, tensors

    def _checked(self, name: str, x: Any) -> Array:
        value = self.graph.values[name]
        if _is_tensor(x):
            if x.device.type != "cpu":
                raise TypeError(f"input {name!r} is on {x.device}; engines run on the CPU: give {name}.cpu()")
            if x.is_floating_point() and x.element_size() == 2:
                raise TypeError(f"input {name!r} is {x.dtype}; convert it: {name}.float()")
            x = x.detach().numpy()
        if not isinstance(x, np.ndarray):
            raise TypeError(f"input {name!r} is a {type(x).__name__}; give a numpy array or a torch tensor")
        wanted = value.dtype
        if wanted == "int64" and x.dtype in (np.int32, np.int16, np.int8, np.uint8):
            x = x.astype(np.int64)
        if x.dtype != np.dtype(wanted):
            raise TypeError(
                f"input {name!r} is {x.dtype}; the engine takes {wanted}, and converts nothing silently: "
                f"give {name}.astype(numpy.{wanted}) or, of torch, {name}.to(torch.{wanted})"
            )
        shape = tuple(value.shape)
        fits = x.ndim == len(shape) and all(n == m for n, m in list(zip(x.shape, shape))[1:])
        if not fits:
            told = ", ".join("batch" if n is None else str(n) for n in shape)
            raise ValueError(
                f"input {name!r} has shape {tuple(x.shape)}; the engine was compiled for ({told}): compile again with an "
                "example of the new size"
            )
        return np.ascontiguousarray(x)

    # -- the rest -------------------------------------------------------------------------------------------------------

    def report(self, *args: Any, seconds: float = 0.3, **kwargs: Any) -> Report:
        """Return how long each operator takes (``print`` it). Give a call's arguments, or nothing for random ones."""
        from rewound.runtime.report import report

        given = self._inputs(args, kwargs)[0] if args or kwargs else None
        return report(self, given, seconds)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write the engine to a file, for ``rewound.runtime.load``; options as of ``rewound.runtime.file.write``."""
        from rewound.runtime.file import write

        notes = {"batch": None if self.dynamic_batch else self.batch, **(options.pop("notes", None) or {})}
        return write(self.graph, path, notes=notes, **options)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What runs one after the other."""
        return tuple(self._parts)

    def __reduce__(self) -> Any:
        options = {
            "threads": self.threads,
            "batch": self.batch,
            "dynamic_batch": self.dynamic_batch,
            "autotune": self.autotune,
        }
        return _again, (self.graph, options)

    def __repr__(self) -> str:
        told = []
        for name in self.graph.inputs:
            value = self.graph.values[name]
            shape = ", ".join("batch" if n is None else str(n) for n in value.shape)
            told.append(f"{name}: {value.dtype} [{shape}]")
        apart = sum(isinstance(part, Alone) for part in self._parts)
        elsewhere = f", {apart} outside of native code" if apart else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"Engine({', '.join(told)}; {len(self.graph.nodes)} operators{elsewhere}, {threads})"


class _Short:
    """The short way through a network of one input, one result and nothing but native operators: for the ones that take
    microseconds. Whatever is unusual goes the long way, which knows what to say of it."""

    def __init__(
        self,
        part: Native,
        threads: int,
        taken: tuple[int, ...],
        made: tuple[int, ...],
        wrap: type | None,
    ) -> None:
        self.part, self.threads, self.taken, self.made, self.wrap = part, threads, taken, made, wrap
        self.ready: dict[int, tuple[Any, int]] = {}  # images -> program and groups

    @staticmethod
    def of(engine: Engine) -> _Short | None:
        graph, plain = engine.graph, engine.graph.structure
        if (
            len(graph.inputs) != 1
            or len(graph.outputs) != 1
            or len(engine._parts) != 1
            or not engine.dynamic_batch
        ):
            return None
        rows = [] if not plain else [row["tree"] for row in plain["arguments"]]
        tree: Any = plain["results"] if plain else {"value": 0}
        wrap: type | None = None
        for kind in (tuple, list):
            if len(tree.get(kind.__name__, ())) == 1:
                wrap, (tree,) = kind, tree[kind.__name__]
        x, y = graph.values[graph.inputs[0]], graph.values[graph.outputs[0]]
        alike = all(row == {"value": graph.inputs[0]} for row in rows) and tree.get("value") == 0
        part = engine._parts[0]
        if not alike or "view" in tree or x.dtype != "float32" or engine._dtypes != ["float32"]:
            return None
        if not isinstance(part, Native) or None in x.shape[1:]:
            return None
        taken, made = (tuple(int(n or 0) for n in value.shape[1:]) for value in (x, y))
        return _Short(part, engine.threads, taken, made, wrap)

    def __call__(self, x: Any) -> Any:
        tensor = type(x) is not np.ndarray
        if tensor:
            torch = sys.modules.get("torch")
            if torch is None or type(x) is not torch.Tensor or x.dtype is not torch.float32:
                return None
            if x.requires_grad or x.device.type != "cpu":
                return None
            x = x.numpy()
        if x.dtype != np.float32 or x.shape[1:] != self.taken or not x.flags.c_contiguous:
            return None
        images = len(x)
        found = self.ready.get(images)
        if found is None:
            if images == 0 or len(self.part.stages(images)) > 1:
                return None
            chunks = self.part.planned(images)
            if len(chunks) != 1 or chunks[0][0].padding or len(chunks[0][1].inputs) != 1:
                return None
            found = self.ready[images] = (chunks[0][1].program, chunks[0][0].groups)
        y = np.empty((images, *self.made), np.float32)
        found[0].run((x,), (y,), found[1], self.threads)
        result = sys.modules["torch"].from_numpy(y) if tensor else y
        return result if self.wrap is None else self.wrap((result,))


def _again(graph: Graph, options: dict[str, Any]) -> Engine:
    return Engine(graph, **options)


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _dtypes(plain: Any, count: int) -> list[str]:
    """Return numpy's dtypes of the results: float32 for whatever is a float."""
    found = ["float32"] * count

    def look(tree: Any) -> None:
        if isinstance(tree, Mapping):
            if isinstance(tree.get("value"), int):
                dtype = str(tree.get("dtype", "float32"))
                found[tree["value"]] = "float32" if "float" in dtype else dtype
            else:
                for item in tree.values():
                    look(item)
        elif isinstance(tree, (list, tuple)):
            for item in tree:
                look(item)

    look((plain or {}).get("results"))
    return found
