"""The loop of Han et al. 2015: layers of one kind are pruned and retrained, the others frozen; then the other kind; and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from rewound.compaction.units import Structure
from rewound.guarding import Guard
from rewound.mask import Mask
from rewound.papers.han2015.dead import without_dead
from rewound.papers.han2015.dropout import adjust_dropout_
from rewound.papers.han2015.thresholds import threshold_mask
from rewound.parameters import named_modules, parameters_by_name
from rewound.scope import ScopeLike, as_scope

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Stage:
    """What the caller retrains now: ``round``, the ``kind`` of layers that train ("dense", "convolution"), the whole ``mask``,
    the new ``dropout`` rates by module, and how many units are ``dead`` by group."""

    round: int
    kind: str
    mask: Mask
    dropout: Mapping[str, float]
    dead: Mapping[str, int]


def han2015(
    model: nn.Module,
    optimizer: Optimizer,
    qualities: Iterable[float | Mapping[str, float]],
    *,
    scope: ScopeLike = None,
    structure: Structure | None = None,
    dropout: bool = True,
) -> Iterator[Stage]:
    """Prune and let the caller retrain, stage by stage: in each round first the dense layers, the convolutions frozen, then the
    convolutions, the dense layers frozen. A network with one kind has one stage a round.

    qualities: of each round, one for all tensors or by name (:func:`threshold_mask`); asked for when the round begins, so that
    a generator can scan the network as it then is (:func:`sensitivity`). structure: of the model
    (``rewound.find_units``), to remove dead units after each pruning; None leaves them. dropout: adjust it to the connections
    left. Survivors go on from their weights. The body of the loop retrains with whatever optimizer settings it likes; the paper
    divides the learning rate of the original training by 10 (LeNet) or 100 (AlexNet).

    During a stage the parameters of the frozen kind, biases too, ask for no gradient and are skipped by the optimizer; all is put
    back at its end, also when the loop is left early. The last mask stays guarded. Raises ``ValueError`` for no round, or for a
    tensor in scope that is neither of a dense layer nor of a convolution.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> for stage in han2015(model, optimizer, [0.5, 0.7]):
    ...     trains = [name for name, p in model.named_parameters() if p.requires_grad]
    ...     print(stage.round, stage.kind, trains, f"{stage.mask.density:.2f}")
    1 dense ['2.weight', '2.bias'] 0.76
    1 convolution ['0.weight', '0.bias'] 0.70
    2 dense ['2.weight', '2.bias'] 0.57
    2 convolution ['0.weight', '0.bias'] 0.53
    """
    kinds = _kinds(model, scope)
    names = as_scope(model, scope).names
    mask, held = threshold_mask(model, 0.0, scope=scope), None
    round = 0
    for round, quality in enumerate(qualities, start=1):
        asked = dict(quality) if isinstance(quality, Mapping) else dict.fromkeys(names, quality)
        for kind, weights in kinds.items():
            before = mask
            now = {name: q for name, q in asked.items() if name in weights or name not in names}
            mask = threshold_mask(model, now, scope=scope, mask=before)
            dead: dict[str, int] = {}
            if structure is not None:
                mask, dead = without_dead(mask, structure)
            rates = adjust_dropout_(model, mask, before) if dropout else {}
            if held is not None:
                held.remove()
            held = Guard(optimizer, model, mask)
            with _training(model, kinds[kind]):
                yield Stage(round, kind, mask, rates, dead)
    if round == 0:
        raise ValueError(
            "'qualities' must give one quality parameter, or one by tensor, for each round (got none)"
        )


def _kinds(model: nn.Module, scope: ScopeLike) -> dict[str, set[str]]:
    """Return kind -> the weights in scope of its layers, the dense layers first."""
    wanted, known = (
        set(as_scope(model, scope).names),
        {id(p): n for n, p in parameters_by_name(model).items()},
    )
    found: dict[str, set[str]] = {"dense": set(), "convolution": set()}
    for _, module in named_modules(model):
        for kind, classes in (("dense", (nn.Linear,)), ("convolution", _CONVOLUTIONS)):
            if isinstance(module, classes):
                found[kind] |= {known[id(p)] for p in module.parameters(recurse=False)} & wanted
    if other := sorted(wanted - found["dense"] - found["convolution"]):
        raise ValueError(
            f"{other[0]!r} is neither of a dense layer nor of a convolution, and the paper prunes those in turn; leave it out of "
            "the scope"
        )
    return {kind: names for kind, names in found.items() if names}


@contextmanager
def _training(model: nn.Module, weights: set[str]) -> Iterator[None]:
    """Freeze everything but the modules that hold ``weights``; put it back."""
    parameters = parameters_by_name(model)
    ids = {id(parameters[name]) for name in weights}
    free = {
        id(p)
        for _, module in named_modules(model)
        if any(id(p) in ids for p in module.parameters(recurse=False))
        for p in module.parameters(recurse=False)
    }
    were = {p: p.requires_grad for p in parameters.values()}
    try:
        for p in were:
            if id(p) not in free:
                p.requires_grad_(False)
                p.grad = (
                    None  # an optimizer skips a parameter without a gradient: no momentum, no decay moves it
                )
        yield
    finally:
        for p, was in were.items():
            p.requires_grad_(was)
