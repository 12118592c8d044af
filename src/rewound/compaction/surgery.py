"""The smaller network: an ordinary module of the user's own classes without what is masked, proven to be the same function."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewound.compaction import mending, proof
from rewound.compaction.attention import NarrowMultiheadAttention
from rewound.compaction.coordinates import Coordinates, remember
from rewound.compaction.coupling import Coupling, couple
from rewound.compaction.foreign import Leaving, leaving, survivors, wholly_masked
from rewound.compaction.huggingface_config import config_edits
from rewound.compaction.repairs import Repair, plan_repair, scales_in_code
from rewound.compaction.rewriting import Rewritten, rewritten
from rewound.compaction.telling import reasons_of
from rewound.compaction.training import require_same_in_training, training_code
from rewound.compaction.units import Certificate
from rewound.parameters import canonical, named_modules, parameters_by_name, tied_names, unwrap_model
from rewound.spelling import closest


def compact(model: nn.Module, mask: Mapping[str, Tensor] | None, example: Any) -> nn.Module:
    """Return the network that is left of ``model`` under ``mask`` when every channel, head and hidden unit that the masked
    network would not miss really leaves.

    The result is an ordinary module of the same classes, with smaller tensors and with the numbers beside them set right
    (``out_channels``, ``groups``, ``num_heads``, ...); ``model`` itself is not touched. Before it is returned, it is run against
    the masked model on ``example``, both in float64: they agree to 1e-10. ``rewound.coordinates(small)`` says where its
    entries were.

    mask: what :func:`rewound.prune` with a structured pattern returned, or any mapping name -> bool (True = kept); what it does
    not name is as the model holds it. example: a tensor, a tuple of positional or a dict of keyword arguments.

    What leaves: units that are masked whole, and, under masks made elsewhere (of filters alone, of single weights), those of
    which the mask names a whole row or column and that are zero, or a constant, or read by zeros alone. A constant, what a bias
    or a batch norm leaves of a masked filter, is added to the bias of the layer that reads it (which gets one if it has none);
    where it meets zero padding it cannot be, so that unit stays, and a warning says so. ``mask=None``: zeros in the model are
    zeros.

    Where units leave the width of an RMSNorm or the dimension of heads (``prune(..., allow="exact after rescale")``), weights
    are multiplied by a factor and eps is set anew; ``coordinates(small).scale`` has the factors. Constants are not in the
    coordinates: they belong to these weights, and those of another step are cut without them.

    Raises ``ValueError`` if nothing can leave (with the reasons), ``RuntimeError`` if the smaller network is not the same
    function
    (naming what differs, and the units that leave only approximately, such as the width of a LayerNorm).

    >>> import rewound
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mask = rewound.prune(model, density=0.5, pattern="hidden unit", example=torch.ones(1, 4))
    >>> rewound.compact(model, mask, torch.ones(1, 4))
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    model = unwrap_model(model)
    mask = mask or {}
    _require_fits(model, mask)
    coupling = couple(model, example)
    gone = leaving(model, coupling, mask)
    cut = plan_cut(model, coupling, mask, gone)
    masked = proof.masked_copy(model, mask)
    mending.apply(masked, cut.repair.pins)
    expected = proof.run_in_float64(masked, example)
    del masked
    try:
        try:
            small = _as_module(model, cut, expected, example)
        except Unsettled:
            if not scales_in_code(coupling, coupling.dead(cut.kept)):
                raise
            small = _as_module(model, plan_cut(model, coupling, mask, gone, products=True), expected, example)
    except Unsettled as error:
        small = _rewritten(model, mask, example, expected, error, gone, _inexact(coupling, cut))
    if gone.staying:
        warnings.warn(f"zeros stay in the smaller network: {_some(gone.staying)}", stacklevel=2)
    return small


def _as_module(model: nn.Module, cut: Cut, expected: list[Tensor], example: Any) -> nn.Module:
    """Return the smaller network as a module of its own classes; ``Unsettled`` if it cannot be told all that it must be."""
    if cut.repair.failed:
        more = len(cut.repair.failed) - 1
        raise Unsettled(cut.repair.failed[0] + (f" (and {more} more)" if more else ""))
    small = copied(model, cut.tensors)
    added = add_biases_(small, cut)
    edits = settle(small, cut.mending, expected, example, cut.exact)
    finish_(small, cut.coordinates, edits)
    note_edits(small, dict.fromkeys(added), added)
    _mend_config_(small, expected, example, cut.exact)
    return small


def add_biases_(small: nn.Module, cut: Cut) -> mending.Edits:
    """Give layers without a bias one, where a constant is folded into it; return what was added, as edits."""
    edits: mending.Edits = {}
    for name, path in cut.leaving.new.items():
        module = dict(named_modules(small))[path]
        edits[path, "bias"] = mending.Added(len(cut.exact[name]))
        module.bias = nn.Parameter(
            cut.exact[name].to(module.weight), requires_grad=module.weight.requires_grad
        )
    return edits


def in_double(small: nn.Module, exact: Mapping[str, Tensor]) -> nn.Module:
    """Return a float64 copy; ``exact``: tensors that were computed in float64 and rounded."""
    double = copy.deepcopy(small).double()
    for name, tensor in parameters_by_name(double).items():
        if name in exact:
            tensor.data = exact[name].to(tensor)
    return double


def _inexact(coupling: Coupling, cut: Cut) -> str:
    """Say which of the units that leave do so only approximately, and what to do about it."""
    groups = [
        g for g in coupling.structure if g.name in cut.kept and g.certificate is Certificate.APPROXIMATE
    ]
    lines = [
        f"{int((~cut.kept[g.name]).sum())} units of {g.name!r} ({g.kind}) leave only approximately: it {g.why}"
        for g in groups[:3]
    ]
    more = f", and so of {len(groups) - 3} other groups" if len(groups) > 3 else ""
    return (
        f"{'; '.join(lines)}{more}. Prune without allow='approximate', or keep the network masked"
        if lines
        else ""
    )


def _mend_config_(
    small: nn.Module, expected: list[Tensor], example: Any, exact: Mapping[str, Tensor]
) -> None:
    """Set a Hugging Face config right, unless the network computes something else with it."""
    edits = config_edits(small)
    if not edits:
        return
    trial = in_double(small, exact)
    mending.apply(trial, edits)
    try:
        found = proof.run_in_float64(trial, example, copied=True)
    except Exception:  # code that takes a size from the config where its tensors have another
        return
    if proof.difference(found, expected) <= proof.TOLERANCE:
        mend_(small, edits)


def finish_(small: nn.Module, where: Coordinates, edits: mending.Edits) -> None:
    """Mend the attributes of a network whose tensors were cut, and note what was done to it, for files and later cuts."""
    remember(small, where)
    mend_(small, edits)


def mend_(small: nn.Module, edits: mending.Edits) -> None:
    """Change attributes of a compact network, and note on it what they are and what they were when it was whole."""
    note_edits(small, mending.apply(small, edits), edits)


def note_edits(small: nn.Module, before: mending.Edits, edits: mending.Edits) -> None:
    """Remember which attributes were changed, from what to what; of several rounds the first and the last value count."""
    object.__setattr__(small, "_rewound_before", {**before, **before_edits(small)})
    object.__setattr__(small, "_rewound_edits", {**edits_of(small), **edits})


def before_edits(model: nn.Module) -> mending.Edits:
    """Return what the attributes of ``edits_of(model)`` were in the network that was whole."""
    return dict(getattr(unwrap_model(model), "_rewound_before", {}))


def edits_of(model: nn.Module) -> mending.Edits:
    """Return the attributes that were changed since a network was whole: (module path, attribute) -> value."""
    return dict(getattr(unwrap_model(model), "_rewound_edits", {}))


class Unsettled(RuntimeError):
    """No setting of a module's attributes makes its code run on the smaller tensors."""


def _rewritten(
    model: nn.Module, mask: Mapping[str, Tensor], example: Any, expected: list[Tensor], error: Unsettled, gone: Leaving,
    inexact: str,
) -> nn.Module:  # fmt: skip
    """Return the smaller network as a graph, for code that has a size written into it; if its code allows it, for any batch."""
    failures = []
    for dynamic in (True, False):
        try:
            small, cut, coupling = _as_graph(model, mask, example, dynamic, gone)
            trial = in_double(small, cut.exact)
            difference = proof.difference(proof.run_in_float64(trial, example, copied=True), expected)
        except Exception as failure:
            failures.append(f"{type(failure).__name__}: {failure}")
            continue
        if difference <= proof.TOLERANCE:
            break
        failures.append(f"it differs by {difference:.3g}")
    else:
        if inexact:
            what = "what is left is not the same function as the masked network"
            raise RuntimeError(f"{what} ({failures[-1]}): {inexact}") from error
        raise RuntimeError(f"{error}; nor is its graph ({failures[-1]})") from error
    why = _train_too_(small, model, mask, example, dynamic, cut, coupling)
    warnings.warn(
        f"the code of {type(model).__name__} has a size written into it, so its smaller network is returned as a graph of "
        f"operators{'' if dynamic else ', for inputs of the shape of the example only'} ({error}). "
        + (
            f"It computes the same in evaluation mode and cannot be trained further ({why}); for that, let that line take the "
            "size from its tensors (-1, or x.shape)"
            if why
            else "It computes the same, in evaluation and in training mode"
        ),
        stacklevel=3,
    )
    small.train(model.training and small.trains)
    finish_(small, cut.coordinates, {})
    return small


def _train_too_(
    small: Rewritten,
    model: nn.Module,
    mask: Mapping[str, Tensor],
    example: Any,
    dynamic: bool,
    cut: Cut,
    coupling: Coupling,
) -> str:
    """Give a graph one for training mode too, in place; return why not, or ""."""
    try:
        small.trained_by(training_code(model, example, coupling, cut.kept, cut.leaving.new, dynamic))
        trial = in_double(small, cut.exact)
        assert isinstance(trial, Rewritten)
        require_same_in_training(trial, proof.masked_copy(model, mask), example, cut.coordinates, copied=True)
    except Exception as failure:
        lines = str(failure).strip().splitlines()
        why = (
            lines[0]
            if lines and isinstance(failure, ValueError)
            else f"{type(failure).__name__}: {(lines or [''])[0]}"
        )
        small.not_trained_because(why)
        return why
    return ""


def _as_graph(
    model: nn.Module, mask: Mapping[str, Tensor], example: Any, dynamic: bool, gone: Leaving
) -> tuple[Rewritten, Cut, Coupling]:
    coupling = couple(model, example, dynamic=dynamic)
    cut = plan_cut(model, coupling, mask, gone, graph=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(model).items():
        new = cut.tensors.get(name, tensor.detach().clone())
        tensors[name] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    for name, path in gone.new.items():
        weight = cut.coordinates.aliases.get(f"{path}.weight".lstrip("."), f"{path}.weight".lstrip("."))
        like = tensors[weight]
        tensors[name] = nn.Parameter(cut.exact[name].to(like), requires_grad=like.requires_grad)
    return rewritten(model, coupling, coupling.dead(cut.kept), tensors, gone.new), cut, coupling


def settle(
    small: nn.Module,
    open_: mending.Mending,
    expected: list[Tensor],
    example: Any,
    exact: Mapping[str, Tensor] | None = None,
) -> mending.Edits:
    """Return the attributes with which ``small`` computes what is expected; ``RuntimeError`` if none do. exact: see ``Cut``.

    Where several are possible, the likeliest come first; then one after the other is changed as long as the model gets further
    (more of its modules run through), until it computes the expected numbers.
    """
    trial = in_double(small, exact or {})
    chosen = [0] * len(open_.open_)
    best, why = _attempt(trial, open_, chosen, expected, example)
    first = why
    improved = best < _PROVEN
    tried = 1
    while improved and best < _PROVEN and tried < 256:
        improved = False
        for i, alternatives in enumerate(open_.open_):
            for k in range(len(alternatives)):
                if k == chosen[i] or best >= _PROVEN:
                    continue
                other = [*chosen[:i], k, *chosen[i + 1 :]]
                score, why = _attempt(trial, open_, other, expected, example)
                tried += 1
                if score > best:
                    best, chosen, first, improved = score, other, why, True
    if best >= _PROVEN:
        return open_.edits(chosen)
    raise Unsettled(
        f"{type(small).__name__} without its masked units is not the same function: {first}"
        + (f" ({tried} ways of setting its attributes were tried)" if tried > 1 else "")
    )


_PROVEN = float("inf")


def _attempt(
    trial: nn.Module, open_: mending.Mending, chosen: list[int], expected: list[Tensor], example: Any
) -> tuple[float, str]:
    """Return how far the model gets (infinite: proven), and what went wrong."""
    before = mending.apply(trial, open_.edits(chosen))
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of the user's code, at every attempt; and of compiled parts, about the hook
            found = proof.run_in_float64(trial, example, copied=True)
    except Exception as failure:
        return done, f"{type(failure).__name__}: {failure}{_line(failure)}"
    finally:
        handle.remove()
        mending.apply(trial, before)
    error = proof.difference(found, expected)
    if error <= proof.TOLERANCE:
        return _PROVEN, ""
    return 1e9 - min(error, 1e8), f"it differs by {error:.3g} (relative)"


def _line(failure: Exception) -> str:
    """Return where in somebody's own code (not torch's) an error came from."""
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = [
        f
        for f in frames
        if "/torch/" not in f.filename.replace("\\", "/") and "/rewound/compaction/" not in f.filename
    ]
    return (
        f" at {'/'.join(theirs[-1].filename.split('/')[-2:])}:{theirs[-1].lineno}: {theirs[-1].line}"
        if theirs
        else ""
    )


@dataclass(frozen=True)
class Cut:
    """What a removal is: the units that stay, where the survivors were, the smaller tensors, the attributes to mend.

    exact: in float64, the tensors that were scaled or had a constant added, and biases that are new; rounded, the proof would see
    the rounding.
    """

    kept: Mapping[str, Tensor]
    coordinates: Coordinates
    tensors: Mapping[str, Tensor]
    mending: mending.Mending
    leaving: Leaving
    repair: Repair
    exact: Mapping[str, Tensor]


def plan_cut(
    model: nn.Module, coupling: Coupling, mask: Mapping[str, Tensor], gone: Leaving | None = None, *, graph: bool = False,
    products: bool = False,
) -> Cut:  # fmt: skip
    """Decide what leaves ``model`` under ``mask``; nothing is changed yet. gone: what leaves; None: what is masked whole.
    graph: the factors are set in the graph, not in weights. products: see ``plan_repair``."""
    structure = coupling.structure
    _require_fits(model, mask)
    gone = gone or wholly_masked(coupling, mask)
    kept = gone.kept
    if not kept:
        raise ValueError(_nothing_masked(coupling, mask, gone))
    where = _survivors(coupling, kept)
    shapes = structure.shapes
    aliases = {alias: first for first, names in _all_names(model).items() for alias in names[1:]}
    repair = (
        Repair({}, {}, {}) if graph else plan_repair(model, coupling, coupling.dead(kept), where, products)
    )
    coordinates = Coordinates(where, shapes, aliases, repair.scale)
    tensors, exact = {}, {}
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            keep, full = mask.get(name), tensor.detach()
            if keep is not None and not bool(
                keep.all()
            ):  # in what stays too: single weights may be pruned besides
                full = full.clone().masked_fill_(~keep.to(tensor.device), 0)
            if name in gone.folds or name in repair.scale:
                exact[name] = coordinates.cut(
                    name, full.double() + gone.folds.get(name, torch.zeros(1)).to(full.device)
                )
                tensors[name] = exact[name].to(full.dtype)
            elif name in where or full.data_ptr() != tensor.data_ptr():
                tensors[name] = coordinates.cut(name, full)
        for name, path in gone.new.items():
            weight = f"{path}.weight".lstrip(".")
            rows = where.get(aliases.get(weight, weight), {}).get(0)
            exact[name] = gone.folds[name] if rows is None else gone.folds[name][rows]
    new_shapes = {name: tensor.shape for name, tensor in tensors.items()}
    new_shapes |= {alias: new_shapes[first] for alias, first in aliases.items() if first in new_shapes}
    mended = mending.mend(model, coupling, coupling.dead(kept), new_shapes)
    mended = mending.Mending({**mended.sure, **repair.edits}, mended.open_)
    return Cut(kept, coordinates, tensors, mended, gone, repair, exact)


def _require_fits(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    parameters = parameters_by_name(model)
    for name, keep in mask.items():
        if name not in parameters:
            near = "".join(f" (nearest: {other!r})" for other in closest(name, parameters))
            raise ValueError(
                f"the mask has {name!r}, the model has no such parameter{near}: the mask belongs to another model"
            )
        if keep.shape != parameters[name].shape or keep.dtype is not torch.bool:
            found = f"{str(keep.dtype).removeprefix('torch.')} {tuple(keep.shape)}"
            raise ValueError(
                f"the mask of {name!r} is {found}, the tensor {tuple(parameters[name].shape)}: it must be bool and of that shape"
            )


def _survivors(coupling: Coupling, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    lines = survivors(coupling, {name: ~units for name, units in kept.items()})
    return {
        name: {axis: line.nonzero().reshape(-1) for axis, line in axes.items()}
        for name, axes in lines.items()
    }


def copied(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model with some of its tensors already replaced, so that the dense ones never exist twice."""
    memo: dict[int, Any] = {}
    for name, tensor in _tensors(model).items():
        if name in tensors:
            new: Tensor = tensors[name]
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = new
    small = copy.deepcopy(model, memo)
    for module in small.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    for old, new_one in zip(model.parameters(), small.parameters()):
        keep_marks(old, new_one)
    return small


def keep_marks(old: Tensor, new: Tensor) -> None:
    """Give a parameter the marks that people put on another (``_no_weight_decay``); copying a parameter drops them."""
    vars(new).update(
        {name: mark for name, mark in vars(old).items() if isinstance(mark, (bool, int, float, str))}
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, a shared one once under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(id(tensor), (canonical(name), tensor))
    return dict(found.values())


def _all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return tied_names(model)


def _some(sentences: tuple[str, ...]) -> str:
    more = len(sentences) - 3
    return "; ".join(sentences[:3]) + (f"; and {more} more groups" if more > 0 else "")


def _nothing_masked(coupling: Coupling, mask: Mapping[str, Tensor], gone: Leaving) -> str:
    structure = coupling.structure
    if gone.staying:
        return f"nothing can leave: {_some(gone.staying)}"
    if not structure.groups:
        reasons = "".join(f"\n  {why}: {names}" for why, names in reasons_of(structure))
        return f"nothing in this network can leave it:{reasons}"
    touched = [g for g in structure if any(s.tensor in mask for s in g.slices)]
    partly = next((g for g in touched for s in g.writers if s.tensor in mask), None)
    if not mask and any(name.endswith("_orig") for name in structure.parameters):
        return "the zeros are in masks of torch.nn.utils.prune: call its remove() for each layer first, and compact again"
    if not mask:
        return "no unit of this network is zero, constant or unread, so nothing can leave; pass a mask (rewound.prune makes one)"
    if partly is None:
        return "the mask covers no tensor of any unit that can leave; see print(rewound.find_units(model, example))"
    return (
        f"no unit is wholly masked, so nothing can leave (of {partly.name!r}, for one, all must be masked of: "
        + ", ".join(f"{s.tensor}[{s.axis}]" for s in partly.slices if s.tensor in structure.parameters)
        + "); prune with pattern='channel', 'head', 'hidden unit' or 'unit', which masks units whole"
    )


__all__ = ["Cut", "NarrowMultiheadAttention", "compact", "named_modules", "plan_cut"]
