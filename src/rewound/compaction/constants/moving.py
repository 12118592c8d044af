"""Element by element, and what only moves entries: carried out as it is on what the operands hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from rewound.compaction.constants.holding import (
    FORM,
    NAN,
    Rule,
    called,
    functional,
    shape_of,
    unknown,
)
from rewound.compaction.contracts import movement
from rewound.compaction.contracts import pointwise as contracts
from rewound.compaction.queries import short
from rewound.compaction.reading import product

if TYPE_CHECKING:
    from rewound.compaction.constants.reckoner import Reckoner


def pointwise(self: Reckoner, node: fx.Node, *arguments: Any, **keywords: Any) -> Tensor:
    held = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    named = {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items() if k not in FORM}
    if short(node).endswith("_"):
        held[0] = held[0].expand(torch.broadcast_shapes(*(h.shape for h in held if isinstance(h, Tensor))))
    result = functional(node)(*held, **named).double()
    for each in (*held, *named.values()):
        if isinstance(each, Tensor):
            result = result.masked_fill(each.isnan(), NAN)
    return result


def _multiply(self: Reckoner, node: fx.Node, a: Any, b: Any) -> Tensor:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return (a * b).masked_fill((a == 0) | (b == 0), 0.0)


def _divide(self: Reckoner, node: fx.Node, a: Any, b: Any, **keywords: Any) -> Tensor:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return torch.div(a, b, **keywords).masked_fill((a == 0) & (b != 0), 0.0)


def _where(self: Reckoner, node: fx.Node, condition: Tensor, a: Any, b: Any) -> Tensor:
    condition, a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (condition, a, b))
    chosen = torch.where(condition != 0, a, b)
    return torch.where(condition.isnan() & (a != b), torch.full_like(chosen, NAN), chosen)


def _masked_fill(self: Reckoner, node: fx.Node, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return _where(self, node, mask, value, x)


def _same(self: Reckoner, node: fx.Node, x: Tensor, *_: Any, **__: Any) -> Tensor:
    before, after = (n.meta["val"].dtype for n in (node.args[0], node))
    return (
        x if after.is_floating_point or not before.is_floating_point else x.double().masked_fill(x != 0, NAN)
    )


def _moved(self: Reckoner, node: fx.Node, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """permute, transpose and their like: carried out as they are."""
    return functional(node)(x, *arguments, **keywords)


def _viewed(self: Reckoner, node: fx.Node, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return regrouped(x, shape_of(node.args[0]), shape_of(node))


def regrouped(x: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """Reshape: stretches of axes that are alike everywhere stay so."""
    if 0 in before:
        return x.new_full([1] * len(after), NAN)
    given, wanted, i = list(before), list(after), 0
    full: list[int] = []
    shape: list[int] = []
    while given or wanted:
        a, b = given[:1], wanted[:1]
        del given[:1], wanted[:1]
        while product(a) != product(b):
            if product(a) < product(b):
                a.append(given.pop(0))
            else:
                b.append(wanted.pop(0))
        here = list(x.shape[i : i + len(a)])
        i += len(a)
        alike = all(n == 1 for n in here)
        full += here if alike else a
        shape += [1] * len(b) if alike else b
    return x.expand(full).reshape(shape)


def _expand(self: Reckoner, node: fx.Node, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.reshape([1] * (len(shape_of(node)) - x.ndim) + list(x.shape))


def _repeat(self: Reckoner, node: fx.Node, x: Tensor, repeats: list[int]) -> Tensor:
    x = x.reshape([1] * (len(repeats) - x.ndim) + list(x.shape))
    return x.repeat([times if n > 1 else 1 for times, n in zip(repeats, x.shape)])


def _repeat_interleave(self: Reckoner, node: fx.Node, x: Tensor, repeats: int, dim: int, **_: Any) -> Tensor:
    return x if x.shape[dim] == 1 else x.repeat_interleave(repeats, dim)


def _cat(self: Reckoner, node: fx.Node, tensors: list[Tensor], dim: int = 0) -> Tensor:
    nodes: Any = node.args[0]
    pairs = [(x, shape_of(n)) for x, n in zip(tensors, nodes) if shape_of(n) != (0,)]
    full = [
        x.double().expand([shape[k] if k == dim % x.ndim else m for k, m in enumerate(x.shape)])
        for x, shape in pairs
    ]
    common = [max(x.shape[k] for x in full) for k in range(full[0].ndim)]
    at = dim % full[0].ndim
    return torch.cat(
        [x.expand([x.shape[k] if k == at else n for k, n in enumerate(common)]) for x in full], dim
    )


def _stack(self: Reckoner, node: fx.Node, tensors: list[Tensor], dim: int = 0) -> Tensor:
    common = torch.broadcast_shapes(*(x.shape for x in tensors))
    return torch.stack([x.double().expand(common) for x in tensors], dim)


def _split(self: Reckoner, node: fx.Node, x: Tensor, size: Any, dim: int = 0) -> list[Tensor]:
    if x.shape[dim] == 1 and shape_of(node.args[0])[dim] > 1:
        return [x] * len(node.meta["val"])
    return list(node.target(x, size, dim))


def _unbind(self: Reckoner, node: fx.Node, x: Tensor, dim: int = 0) -> list[Tensor]:
    return [x.select(dim, i if x.shape[dim] > 1 else 0) for i in range(shape_of(node.args[0])[dim])]


def _select(self: Reckoner, node: fx.Node, x: Tensor, dim: int, index: int) -> Tensor:
    return x.select(dim, index if x.shape[dim] > 1 else 0)


def _slice(self: Reckoner, node: fx.Node, x: Tensor, dim: int = 0, *bounds: Any, **keywords: Any) -> Tensor:
    return x if x.shape[dim] == 1 else node.target(x, dim, *bounds, **keywords)


def _index(self: Reckoner, node: fx.Node, x: Tensor, indices: list[Any]) -> Tensor:
    used = [i for i, index in enumerate(indices) if index is not None]
    if any(x.shape[i] > 1 for i in used):
        return unknown(node)
    rest = [n for i, n in enumerate(x.shape) if i not in used]
    adjacent = used == list(range(used[0], used[0] + len(used)))
    at = used[0] if adjacent else 0
    return x.reshape([*rest[:at], *[1] * (len(shape_of(node)) - len(rest)), *rest[at:]])


def _index_add(
    self: Reckoner, node: fx.Node, x: Tensor, dim: int, index: Tensor, source: Tensor, **_: Any
) -> Tensor:
    if x.shape[dim] > 1 or source.shape[dim] > 1:
        return unknown(node)
    return torch.where(source == 0, x.double(), NAN)  # where and how often is not asked


def _pad(
    self: Reckoner, node: fx.Node, x: Tensor, widths: list[int], mode: Any = "constant", value: Any = None
) -> Tensor:
    fill = float(value or 0.0) if mode == "constant" else None
    x = x.double()
    for k in range(len(widths) // 2):
        at, ends = x.ndim - 1 - k, widths[2 * k : 2 * k + 2]
        if x.shape[at] > 1 and fill is not None:
            x = nn.functional.pad(x, [0, 0] * k + list(ends), value=fill)
        elif x.shape[at] > 1 and any(ends):
            x = torch.full_like(x.narrow(at, 0, 1), NAN)
        elif max(ends) > 0 and fill is not None:
            x = x.masked_fill(x != fill, NAN)
    return x


def _made(self: Reckoner, node: fx.Node, *arguments: Any, **__: Any) -> Tensor:
    name = short(node)
    held = unknown(node)
    if "empty" not in name:
        number = (
            0.0
            if "zeros" in name
            else 1.0
            if "ones" in name
            else arguments[0 if name == "scalar_tensor" else -1]
        )
        held.fill_(float(number))
    return held


def _pixel_shuffle(self: Reckoner, node: fx.Node, x: Tensor, factor: int) -> Tensor:
    if x.shape[-3] == 1:
        return x
    apart = x.reshape(*x.shape[:-3], -1, factor**2, 1, 1)
    first = apart[..., :1, :, :]
    return first.masked_fill(~(apart == first).all(-3, keepdim=True), NAN).squeeze(-3)


def _pixel_unshuffle(self: Reckoner, node: fx.Node, x: Tensor, factor: int) -> Tensor:
    return x if x.shape[-3] == 1 else x.repeat_interleave(factor**2, dim=-3)


def _pad_by_itself(self: Reckoner, node: fx.Node, x: Tensor, widths: list[int]) -> Tensor:
    return _pad(self, node, x, widths, "other")


RULES: dict[str, Rule] = {
    # what draws numbers is no function
    **dict.fromkeys((name for name in contracts.RULES if name != "log_normal"), pointwise),
    **called(_multiply, "mul multiply"),
    **called(_divide, "div divide true_divide"),
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys((name for name, rule in movement.RULES.items() if rule is movement.same), _same),
    **called(
        _moved,
        "permute transpose swapaxes swapdims t numpy_T matrix_H mT adjoint movedim moveaxis unsqueeze flip",
    ),
    **called(_viewed, "view reshape _unsafe_view flatten unflatten view_as reshape_as ravel squeeze"),
    **called(_expand, "expand expand_as broadcast_to"),
    **called(_repeat, "repeat tile"),
    "repeat_interleave": _repeat_interleave,
    **called(_cat, "cat concat concatenate"),
    "stack": _stack,
    **called(_split, "split split_with_sizes unsafe_split chunk unsafe_chunk"),
    "unbind": _unbind,
    "select": _select,
    "slice": _slice,
    "index": _index,
    "index_add": _index_add,
    "pad": _pad,
    "constant_pad_nd": lambda self, node, x, widths, value=0: _pad(self, node, x, widths, "constant", value),
    **called(_pad_by_itself, "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
    **called(
        _made, "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor"
    ),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
