"""A model's operators as a graph, taken from the user's untouched module.

``torch.export`` (non-strict) runs the model's own Python on fake tensors: nothing is computed, and a model on the meta
device costs
no memory. Where that fails (data-dependent control flow, tensors turned into numbers), one real run on the example is
recorded instead; the graph is then that of this example's path through the code, and the Capture says so.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from rewound.parameters import canonical, named_modules, unwrap_model
from rewound.untouched import as_found, call_of


@dataclass(frozen=True)
class Capture:
    """graph: ATen operators, placeholders first. tensors: placeholder -> name of the parameter or buffer it stands for (a
    shared tensor under its first name). constants: placeholder or attribute -> a tensor made in the model's code.
    recorded: why the graph is one recorded run, or None where it was exported."""

    graph: fx.Graph
    module: fx.GraphModule | None
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    recorded: str | None = None
    program: Any = None  # the ExportedProgram, where there is one


def capture(model: nn.Module, example: Any, *, dynamic: bool = False, training: bool = False) -> Capture:
    """Return the operators that ``model`` runs on ``example`` in evaluation mode.

    dynamic: where the code allows it, sizes of the inputs stay symbolic, so that the graph runs on other batches too. training:
    in training mode instead, exported or not at all: one recorded run would have its random numbers written into it.

    example: a tensor, a tuple of positional or a dict of keyword arguments. The model's mode, buffers, attributes, hooks
    and the random number generators are left as they were. ``RuntimeError`` with both causes if neither way works.
    """
    model = unwrap_model(model)
    args, kwargs = call_of(example)
    with as_found(model, training), without_cache(model), _quiet():
        try:
            program = _exported(model, args, kwargs, dynamic)
            _require_sizes(program.graph)
        except Exception as error:
            _require_one_path(model, error)
            if training:
                raise
            return _recorded(model, args, kwargs, error)
    names = _first_names(model)
    signature = program.graph_signature
    tensors = {
        node: names[canonical(name)]
        for node, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
        if canonical(name) in names
    }
    constants = {
        node: value
        for node, name in signature.inputs_to_lifted_tensor_constants.items()
        if isinstance(value := program.constants.get(name), Tensor)
    }
    return Capture(program.graph, program.graph_module, tensors, constants, None, program)


_OF_TORCH = re.compile(r"[/\\]torch[/\\](nn|_|utils|functional|fx|export|overrides|func|library)")
_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
)


def _require_one_path(model: nn.Module, error: BaseException) -> None:
    """Refuse a model whose data decide which of its operators run: one recorded run would know one path, and cut the others
    wrongly."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _DATA_DEPENDENT:
            frames = traceback.extract_tb(cause.__traceback__)
            theirs = [f for f in frames if not _OF_TORCH.search(f.filename) and "rewound" not in f.filename]
            at = (
                f"{theirs[-1].filename}:{theirs[-1].lineno}: {theirs[-1].line}"
                if theirs
                else "an unknown line"
            )
            raise ValueError(
                f"what {type(model).__name__} computes depends on its data (at {at}), so an example shows one path of "
                "several, and "
                "nothing can be said of the others; take that decision out of forward, or prune single weights "
                "(pattern='weight')"
            ) from error
        cause = cause.__cause__ or cause.__context__


def _exported(model: nn.Module, args: Any, kwargs: Any, dynamic: bool) -> Any:
    if dynamic:

        def sizes(leaf: Any) -> Any:
            return (
                {0: torch.export.Dim.AUTO}
                if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] > 1
                else None
            )

        # by position or by name of forward's arguments
        names = list(inspect.signature(model.forward).parameters)
        given = {**dict(zip(names, args)), **kwargs}
        if len(args) <= len(names):
            try:
                return torch.export.export(
                    model, args, kwargs, strict=False, dynamic_shapes=tree_map(sizes, given)
                )
            except Exception:
                pass  # the code says more of its sizes than that
    return torch.export.export(model, args, kwargs, strict=False)


def _require_sizes(graph: fx.Graph) -> None:
    """``ValueError`` if a size follows from the data (nonzero, a mask as an index): only a run tells it."""
    for node in graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            sizes = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(n, torch.SymInt) and n.node.hint is None for n in sizes):
                raise ValueError(f"the data decides a size ({node.target} at {source(node)})")


def place(node: fx.Node) -> str:
    """Return the path of the module in which an operator runs ("" = the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())))[0] if stack else ""
    return canonical(re.sub(r"@\d+$", "", path).removeprefix("L['self'].").removeprefix("L['self']"))


def source(node: fx.Node) -> str:
    """Return the innermost line of the user's code (not of torch) that called an operator: ``file:line: code``."""
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', node.meta.get("stack_trace") or ""
    )
    theirs = [f for f in frames if not _OF_TORCH.search(f[0])] or frames
    if not theirs:
        return "an unknown line"
    file, line, code = theirs[-1]
    short = "/".join(re.split(r"[/\\]", file)[-2:])
    return f"{short}:{line}: {code.strip()}"


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return every name of every parameter and buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            clean = canonical(name)
            names[clean] = first.setdefault(id(tensor), clean)
    return names


def _recorded(model: nn.Module, args: Any, kwargs: Any, error: Exception) -> Capture:
    """Record one real run on the example."""
    from torch.fx.experimental.proxy_tensor import make_fx

    names = _first_names(model)
    state = {
        **{canonical(n): p for n, p in model.named_parameters()},
        **{canonical(n): b for n, b in model.named_buffers()},
    }
    state = {name: tensor.detach() for name, tensor in state.items() if names[name] == name}

    def run(tensors: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        given = {name: tensors[first] for name, first in names.items()}
        return torch.func.functional_call(model, given, args, kwargs, tie_weights=False)

    # since torch 2.9; before it, reasons do not say at which line
    lines = (
        {"record_stack_traces": True}
        if "record_stack_traces" in inspect.signature(make_fx).parameters
        else {}
    )
    try:
        module = make_fx(
            run, tracing_mode="real", pre_dispatch=True, record_module_stack=True,
            _allow_non_fake_inputs=True, _error_on_data_dependent_ops=False, **lines,
        )(state, args, kwargs)  # fmt: skip
    except Exception as second:
        raise RuntimeError(
            f"the operators of {type(model).__name__} can be neither exported ({_first_line(error)}) nor recorded "
            f"({_first_line(second)}); pass as example what the model is really called with"
        ) from error
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    tensors = {node.name: name for node, name in zip(placeholders, state)}
    constants = {
        str(node.target): getattr(module, str(node.target))
        for node in module.graph.nodes
        if node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), Tensor)
    }
    return Capture(module.graph, module, tensors, constants, _first_line(error))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Hugging Face models return their cache of keys and values, which is no result: switch it off meanwhile."""
    found: dict[int, Any] = {}
    for _, module in named_modules(model):
        config: Any = getattr(module, "config", None)
        parts: list[Any] = [config, getattr(config, "decoder", None), getattr(config, "text_config", None)]
        for part in parts:
            if getattr(part, "use_cache", False) is True:
                found[id(part)] = part
                part.use_cache = False
    try:
        yield
    finally:
        for part in found.values():
            part.use_cache = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Export talks at length about what does not concern a reader of graphs (recurrent layers' flat weights)."""
    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._export", "torch._dynamo")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
