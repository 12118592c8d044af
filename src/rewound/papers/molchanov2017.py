"""Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference": one map after the other.

The criterion is ``rewound.criteria.taylor``; this is the loop around it. What it stands in for: ``oracle.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rewound.compaction.units import Structure
from rewound.criteria import Criterion
from rewound.evidence import Evidence
from rewound.guarding import guard
from rewound.mask import Mask
from rewound.parameters import unwrap_model
from rewound.patterns.binding import bind, find_pattern
from rewound.patterns.units import EachUnit
from rewound.pruning import prune
from rewound.scope import Scope, ScopeLike, as_scope
from rewound.untouched import as_found


def molchanov2017(
    model: nn.Module,
    optimizer: Optimizer,
    density: float,
    *,
    example: Any,
    evidence: Callable[[nn.Module, Scope], Evidence],
    remove: int = 1,
    criterion: str | Criterion = "taylor",
    pattern: str | tuple[str, ...] | Structure = "channel",
    scope: ScopeLike = None,
    mask: Mask | None = None,
) -> Iterator[Mask]:
    """Remove the ``remove`` lowest-scored units, yield the mask for a few updates of the caller's own, and so on until
    ``density`` of the units is left. Molchanov et al. 2017, section 2.

    Before each yield the optimizer is guarded with the new mask (``rewound.guard``), and it stays so after the last one, for
    the final fine-tuning. The body of the loop is a few minibatch updates: the paper makes 10 to 100 between removals.
    The optimizer keeps its lr; the paper fine-tunes with a small one.

    density: kept / total in units, of those that ``pattern`` and ``scope`` make candidates; every group keeps one at least.
    example: one input, to find the units. evidence: function (model, scope) -> Evidence with batches and loss, asked before
    each removal; the paper takes the minibatches of the updates just made. Scores are computed in evaluation mode, so that
    each example stands for itself; the modes are put back. mask: what is pruned already.

    Raises ValueError if ``density`` would empty a group, or is above what ``mask`` has left.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> x, y = torch.randn(32, 1, 6, 6), torch.arange(32) % 2
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    >>> def update():
    ...     optimizer.zero_grad()
    ...     nn.functional.cross_entropy(model(x), y).backward()
    ...     optimizer.step()
    >>> def see(model, scope):
    ...     return Evidence(model, scope, batches=[(x, y)], loss=nn.functional.cross_entropy)
    >>> for mask in molchanov2017(model, optimizer, density=0.5, example=x[:1], evidence=see, remove=2):
    ...     for _ in range(10):
    ...         update()
    >>> for _ in range(20):                     # the final fine-tuning
    ...     update()
    >>> mask.units_kept, mask.units_size, mask.fits(model)
    (5, 10, True)
    """
    if type(remove) is not int or remove < 1:
        raise ValueError(f"'remove' must be a whole number of at least 1 (got {remove!r})")
    chosen = as_scope(model, scope)
    only = None if mask is None else mask.units
    units = bind(model, find_pattern(model, pattern, example), chosen, only=only)
    if not isinstance(units, EachUnit):
        raise ValueError(f"molchanov2017 removes units such as channels (got pattern {pattern!r})")
    sizes = {name: shape.numel() for name, shape in units.shapes.items()}
    size = sum(sizes.values())
    target = round(density * size) if 0 < density <= 1 else -1
    if target < len(sizes):
        raise ValueError(
            f"'density' must be in [{len(sizes) / size:.3g}, 1] (got {density!r}): each of the {len(sizes)} groups keeps one "
            f"of the {size:,} units at least"
        )
    kept = size if mask is None else sum(int(left.sum()) for left in units.alive(mask).values())
    if target > kept:
        raise ValueError(
            f"density {density} keeps {target:,} of {size:,} units, and the mask has {kept:,} left"
        )
    counts = [max(target, kept - done) for done in range(remove, kept - target + remove, remove)]

    def removing() -> Iterator[Mask]:
        now, guarding = mask, None
        for count in counts:
            with as_found(unwrap_model(model)):
                now = prune(
                    model,
                    count / size,
                    criterion=criterion,
                    pattern=units.structure,
                    scope=chosen,
                    mask=now,
                    evidence=evidence(model, chosen),
                    floor=0.0,
                )
            if guarding is not None:
                guarding.remove()
            guarding = guard(optimizer, model, now)
            yield now

    return removing()
