"""What a model calls on an example, read from a captured graph: torch's operators by name, with sizes that know the batch."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from rewound.compaction.capture import Capture, capture, place, source
from rewound.runtime.convert.sizes import Batch, Size
from rewound.untouched import call_of


@dataclass(frozen=True)
class Ref:
    """The result of an earlier call, an input, or a tensor of the model."""

    name: str


@dataclass(frozen=True)
class Call:
    """target: torch's operator (or ``operator.getitem``). arguments: by the names of its schema, defaults left out. shape, dtype:
    of its result; ``None`` where that is no single tensor."""

    name: str
    target: Any
    arguments: Mapping[str, Any]
    shape: tuple[Size, ...] | None
    dtype: torch.dtype | None
    source: str
    line: str


@dataclass(frozen=True)
class Input:
    """A tensor of the example. shape: its first size the batch."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Calls:
    """A model's calls in their order. tensors: Ref -> (the model's tensor, its name). results: leaves of what it returns.
    images: the batch where it is fixed, and ``why``."""

    calls: tuple[Call, ...]
    inputs: tuple[Input, ...]
    tensors: Mapping[str, tuple[Tensor, str]]
    results: tuple[Any, ...]
    returned: Any  # TreeSpec
    images: int | None = None
    why: str = ""


class Specialised(Exception):
    """The batch is a number in what was captured."""


def calls_of(model: nn.Module, example: Any) -> Calls:
    """Return what ``model`` calls, for any batch where its code allows it.

    Three ways: sizes as symbols; two captures at batches of 2 and 3, compared; and the example's own batch, as a number.
    """
    found = batch_of(example)
    try:
        return _read(_captured(model, resized(example, found, max(2, found)), True), True, found)
    except Specialised as error:
        why = str(error)
    try:
        pair = [_read(_captured(model, resized(example, found, n), False), False, found) for n in (2, 3)]
        return _compared(*pair)
    except (Specialised, ValueError, RuntimeError) as error:
        why = f"{why}; at batches of 2 and 3: {error}"
    return fixed(model, example, why)


def fixed(model: nn.Module, example: Any, why: str) -> Calls:
    """Return what ``model`` calls at the example's own batch."""
    found = batch_of(example)
    calls = _read(_captured(model, example, False), False, found)
    return Calls(calls.calls, calls.inputs, calls.tensors, calls.results, calls.returned, found, why)


def batch_of(example: Any) -> int:
    """Return the first size of an example's first tensor."""
    leaves = [leaf for leaf in tree_flatten(call_of(example))[0] if isinstance(leaf, Tensor)]
    if not leaves or leaves[0].ndim == 0:
        raise ValueError("the example holds no tensor with a batch axis; give what the model is called with")
    if leaves[0].shape[0] == 0:
        raise ValueError("the example is an empty batch; give at least one image")
    return int(leaves[0].shape[0])


def resized(example: Any, found: int, images: int) -> Any:
    """Return an example of another batch, its images repeated."""

    def one(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == found) or found == images:
            return leaf
        return leaf[torch.arange(images, device=leaf.device) % found]

    args, kwargs = tree_map(one, call_of(example))
    return kwargs if kwargs else args


def _captured(model: nn.Module, example: Any, dynamic: bool) -> Capture:
    with _hooks_as_found(model):
        captured = capture(model, example, dynamic=dynamic)
    if captured.recorded is not None or captured.program is None:
        raise ValueError(
            f"{type(model).__name__} cannot be exported ({captured.recorded}), so that one run on the example would be all "
            "that is known of it, and other inputs could take other ways; make forward exportable by torch.export"
        )
    return captured


@contextmanager
def _hooks_as_found(model: nn.Module) -> Iterator[None]:
    """Take away the hooks that a model gives itself while it runs (Hugging Face's do, once, and remember it in an attribute)."""
    kinds = [name for name in vars(nn.Module()) if name.startswith("_") and "hooks" in name]
    found = [(getattr(m, kind), dict(getattr(m, kind))) for m in model.modules() for kind in kinds]
    try:
        yield
    finally:
        for hooks, before in found:
            hooks.clear()
            hooks.update(before)


_SKIPPED = (
    "_assert",
    "sym_constrain",
    "sym_size",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_assert_async",
)


def _read(captured: Capture, dynamic: bool, found: int) -> Calls:
    program = captured.program
    if any(_mutates(node) and not _harmless(node, program.graph) for node in program.graph.nodes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions({})
    signature = program.graph_signature
    if signature.buffers_to_mutate or getattr(signature, "user_inputs_to_mutate", None):
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise ValueError(f"forward changes {changed[0]!r} in evaluation mode: an engine has no state")
    nodes = {node.name: node for node in program.graph.nodes}
    given = {name for name in signature.user_inputs if isinstance(name, str) and name in nodes}
    size = _Sizes(program, given, found if not dynamic else max(2, found), dynamic)
    tensors: dict[str, tuple[Tensor, str]] = {}
    for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        value = program.state_dict.get(name, program.constants.get(name))
        tensors[placeholder] = (value, captured.tensors.get(placeholder, name))
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        tensors[placeholder] = (program.constants[name], "")
    calls: list[Call] = []
    inputs: list[Input] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given and isinstance(node.meta.get("val"), Tensor):
            value = node.meta["val"]
            inputs.append(Input(node.name, tuple(size(n) for n in value.shape), value.dtype))
        elif node.op == "get_attr":
            tensors[node.name] = (getattr(program.graph_module, str(node.target)), "")
        elif node.op == "call_function" and not _skipped(node):
            calls.append(_call(node, size))
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    user = [
        leaf for leaf, spec in zip(outputs, signature.output_specs) if str(spec.kind).endswith("USER_OUTPUT")
    ]
    results = tuple(_argument(leaf, size) for leaf in user)
    alive = _alive(calls, results)
    return Calls(tuple(alive), tuple(inputs), tensors, results, program.call_spec.out_spec)


def _skipped(node: fx.Node) -> bool:
    value = node.meta.get("val")
    name = getattr(node.target, "__name__", str(node.target))
    return isinstance(value, (torch.SymInt, torch.SymBool, int, bool)) or name.startswith(_SKIPPED)


def _call(node: fx.Node, size: _Sizes) -> Call:
    value = node.meta.get("val")
    shape = tuple(size(n) for n in value.shape) if isinstance(value, Tensor) else None
    dtype = value.dtype if isinstance(value, Tensor) else None
    line = source(node)
    where = place(node) or line
    if node.target is operator.getitem:
        arguments = {"of": _argument(node.args[0], size), "index": node.args[1]}
        return Call(node.name, node.target, arguments, shape, dtype, where, line)
    if not isinstance(node.target, torch._ops.OpOverload):
        raise ValueError(
            f"{node.target} at {line}: what it computes depends on data or is no operator of torch's"
        )
    target = _functional(node.target) if _mutates(node) else node.target
    names = [a.name for a in target._schema.arguments]
    spelled = dict(
        zip([a.name for a in node.target._schema.arguments], names)
    )  # dropout_ says "self", dropout "input"
    arguments = {name: _argument(value, size) for name, value in zip(names, node.args)}
    arguments.update({spelled[name]: _argument(value, size) for name, value in node.kwargs.items()})
    return Call(node.name, target, arguments, shape, dtype, where, line)


def _argument(value: Any, size: _Sizes) -> Any:
    if isinstance(value, fx.Node):
        found = value.meta.get("val")
        if isinstance(found, (torch.SymInt, int)) and not isinstance(found, bool):
            return size(found)
        if isinstance(found, (torch.SymFloat, torch.SymBool)):
            raise Specialised(f"{value.name} is a number made of the batch's size")
        return Ref(value.name)
    if isinstance(value, (list, tuple)):
        return [_argument(item, size) for item in value]
    return size(value) if isinstance(value, torch.SymInt) else value


def _alive(calls: list[Call], results: tuple[Any, ...]) -> list[Call]:
    needed = {leaf.name for leaf in results if isinstance(leaf, Ref)}
    alive = []
    for call in reversed(calls):
        if call.name in needed:
            alive.append(call)
            needed.update(
                leaf.name for leaf in tree_flatten(dict(call.arguments))[0] if isinstance(leaf, Ref)
            )
    return alive[::-1]


# -- operators that write into their input --------------------------------------------------------------------------------------


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _aliases(node: fx.Node) -> bool:
    """Whether a node's result may share its input's memory."""
    if node.op != "call_function":
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    returns = node.target._schema.returns
    maybe = node.target.name().split("::")[-1].split(".")[0]
    return any(r.alias_info is not None for r in returns) or maybe in _MAYBE_VIEWS


_MAYBE_VIEWS = {"reshape", "contiguous", "flatten", "to", "dropout", "feature_dropout", "alpha_dropout", "type_as", "identity",
                "squeeze_copy", "ravel", "lift_fresh", "conj", "resolve_conj", "resolve_neg", "chunk", "unflatten",
                "movedim", "tensor_split", "expand_as", "view_as", "reshape_as", "float", "double"}  # fmt: skip


def _harmless(node: fx.Node, graph: fx.Graph) -> bool:
    """Whether an operator in place writes what only its own readers read from then on, as an activation behind its layer does."""
    written = node.args[0]
    if (
        not isinstance(written, fx.Node)
        or not isinstance(node.meta.get("val"), Tensor)
        or _functional(node.target) is None
    ):
        return False
    if any(a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments[1:]):
        return False
    if str(node.target) == "aten.dropout_.default" and node.args[2] is False:
        return True  # writes nothing
    if _aliases(written) and not _mutates(written):
        return False
    later = False
    for other in graph.nodes:
        if other is node:
            later = True
        elif other in written.users and (later or _aliases(other)):
            return False
    return True


def _functional(target: Any) -> Any:
    """Return the operator that computes what one in place writes, or ``None``."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    found = (
        getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    )
    return getattr(found, overload, None) if found is not None else None


# -- sizes ----------------------------------------------------------------------------------------------------------------------


@dataclass
class _Sizes:
    """Turns torch's sizes, symbols among them, into numbers and multiples of the batch."""

    program: Any
    given: set[str]
    images: int
    dynamic: bool
    known: dict[Any, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch: set[Any] = set()
        if not self.dynamic:
            return
        for node in self.program.graph.nodes:
            value = node.meta.get("val")
            if node.name not in self.given or not isinstance(value, Tensor) or value.ndim == 0:
                continue
            first = value.shape[0]
            if not isinstance(first, torch.SymInt):
                if int(first) == self.images:
                    raise Specialised(f"the code takes the batch of {node.name!r} for a number")
                continue
            if first.node.hint != self.images:
                continue
            if not first.node.expr.is_Symbol:
                raise Specialised(f"the batch of {node.name!r} must be {first.node.expr}")
            bounds = self.program.range_constraints.get(first.node.expr)
            if bounds is not None and not (bounds.lower <= 2 and bounds.upper > 1 << 31):
                raise Specialised(f"the batch of {node.name!r} must be in {bounds}")
            self.batch.add(first.node.expr)

    def __call__(self, size: Any) -> Size:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self.known:
            self.known[expression] = self._of(expression, size)
        return self.known[expression]

    def _of(self, expression: Any, size: Any) -> Size:
        import sympy

        if not expression.free_symbols & self.batch:
            return int(size.node.hint)
        hints = {s: sympy.Integer(self._hint(s, size)) for s in expression.free_symbols - self.batch}
        at = [
            int(expression.subs({**hints, **{s: sympy.Integer(n) for s in self.batch}})) for n in (60, 61, 67)
        ]
        factor = at[1] - at[0]
        if factor < 1 or at != [60 * factor, 61 * factor, 67 * factor]:
            raise Specialised(f"a size is {expression}, no multiple of the batch")
        return Batch(factor)

    @staticmethod
    def _hint(symbol: Any, size: Any) -> int:
        hints = getattr(size.node.shape_env, "backed_var_to_val", None) or size.node.shape_env.var_to_val
        return int(hints[symbol])


def _compared(two: Calls, three: Calls) -> Calls:
    """Return the calls of any batch, from those of a batch of 2 and of 3."""

    def joined(a: Any, b: Any) -> Any:
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            return type(a)(joined(x, y) for x, y in zip(a, b))
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: joined(a[key], b[key]) for key in a}
        whole = type(a) is int and type(b) is int
        if whole and a != b:
            if a > 0 and a % 2 == 0 and b * 2 == a * 3:
                return Batch(a // 2)
            raise Specialised(f"a size is {a} and {b}, no multiple of the batch")
        if type(a) is not type(b) or (a != b and not (a != a and b != b)):
            raise Specialised(f"the code passes {a} and {b}")
        return a

    if len(two.calls) != len(three.calls):
        raise Specialised(f"the code calls {len(two.calls)} and {len(three.calls)} operators")
    calls = []
    for a, b in zip(two.calls, three.calls):
        if a.target is not b.target or a.name != b.name:
            raise Specialised(f"the code calls {a.target} and {b.target} at {a.line}")
        shape = joined(a.shape, b.shape)
        calls.append(
            Call(
                a.name,
                a.target,
                joined(dict(a.arguments), dict(b.arguments)),
                shape,
                a.dtype,
                a.source,
                a.line,
            )
        )
    inputs = tuple(Input(a.name, joined(a.shape, b.shape), a.dtype) for a, b in zip(two.inputs, three.inputs))
    for name, (tensor, _) in two.tensors.items():
        other = three.tensors[name][0]
        if tensor.shape != other.shape or (tensor is not other and not torch.equal(tensor, other)):
            raise Specialised(f"the code makes {tensor.shape} and {other.shape} of constants")
    return Calls(tuple(calls), inputs, two.tensors, joined(two.results, three.results), two.returned)
