"""Taylor: what the loss would change by, to first order, if a unit were gone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewound.activations import examples_in, first_order, reading
from rewound.compaction.units import Group, Structure
from rewound.evidence import Evidence, of_units
from rewound.parameters import parameters_by_name


@of_units
def taylor(
    evidence: Evidence, *, normalise: bool = True, flops: float = 0.0, reduction: str = "mean"
) -> Mapping[str, Tensor]:
    """Score of a map = mean over examples of |mean over positions of gradient x map|. Molchanov et al. 2017, section 2.2.

    The map is what the next layers read (after the activation function, ``rewound.activations``); the absolute value is
    taken example by example, so that effects of opposite sign do not cancel and the score does not depend on how the
    examples are batched. Where several layers read a unit, their parts are added up before that.

    normalise: divide by the L2 norm of the layer's scores (section 2.2, "layer-wise l2-normalization"). flops: subtract
    this much for a million FLOPs that leave with the unit (two for each multiply-add of one example, with nothing else
    pruned); the paper's lambda is 1e-3, and the million is our reading of it. reduction: how the loss joins examples, "mean"
    or "sum". To set them: ``of_units(functools.partial(taylor, flops=1e-3))``.

    Needs ``Evidence(model, batches=..., loss=...)``. The model runs in the mode it is in; call ``model.eval()`` for scores of
    each example by itself: in training mode batch norm joins the examples.

    >>> from rewound.compaction.units import Slice
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> for p, value in zip(net.parameters(), ([[1.0], [2.0]], [0.0, 0.0], [[1.0, -1.0]], [0.0])):
    ...     p.data = torch.tensor(value)
    >>> unit = torch.tensor([[0], [1]])
    >>> group = Group("0", "hidden unit", 2, (Slice("0.weight", 0, unit, "writes"), Slice("2.weight", 1, unit, "reads")))
    >>> evidence = Evidence(net, batches=[(torch.tensor([[1.0], [3.0]]), None)], loss=lambda output, _: output.mean())
    >>> evidence = evidence.with_structure(Structure((group,), {}, frozenset()))
    >>> taylor(evidence, normalise=False)["0"]     # maps 1, 3 and 2, 6; gradients 1 and -1
    tensor([2., 4.], dtype=torch.float64)
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"'reduction' must be 'mean' or 'sum' (got {reduction!r})")
    sums: dict[str, Tensor] = {}
    total = 0

    def see(loss: Tensor, given: object) -> None:
        nonlocal total
        examples = examples_in(given)
        total += examples
        weight = examples if reduction == "mean" else 1  # each example's own loss, not its share of a mean
        for name, (effects, positions) in first_order(loss, readings.take(), examples).items():
            score = effects.double().abs().sum(dim=0) * (weight / positions)
            sums[name] = sums[name] + score if name in sums else score

    with reading(evidence.model, evidence.units) as readings:
        evidence.for_each_batch(see)
    scores = evidence.averaged({name: score / total for name, score in sums.items()})
    if normalise:
        scores = {name: score / score.norm().clamp_min(1e-300) for name, score in scores.items()}
    if not flops:
        return scores
    if not evidence.units.work:
        raise ValueError("flops= needs the work of each layer: the Structure has none (find_units counts it)")
    return {
        group.name: scores[group.name] - flops * 2e-6 * multiply_adds(evidence.units, group)
        for group in evidence.units
    }


@of_units
def taylor_gates(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a unit = mean over batches of (dL/dg)^2, g = 1 a gate that multiplies its map. Molchanov et al. 2019, sec. 3.

    dL/dg = sum over examples and positions of gradient x map: signs cancel within a batch, unlike in ``taylor``, and the
    score depends on the size of the batches. Gates stand where the unit is read. Needs batches and loss.
    """
    sums: dict[str, Tensor] = {}

    def see(loss: Tensor, given: object) -> None:
        for name, (effects, _) in first_order(loss, readings.take(), examples=1).items():
            score = effects.double().sum(dim=0).square()
            sums[name] = sums[name] + score if name in sums else score

    with reading(evidence.model, evidence.units) as readings:
        count = evidence.for_each_batch(see)
    return evidence.averaged({name: score / count for name, score in sums.items()})


@of_units
def taylor_weights(evidence: Evidence) -> Mapping[str, Tensor]:
    """Score of a unit = mean over batches of (sum of gradient x weight over the weights that write it)^2.

    Molchanov et al. 2019, section 3.1, equation 8 for a whole filter. Needs batches and loss, and no feature maps, so that
    it works for every kind of unit.

    >>> from rewound.compaction.units import Slice
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -2.0], [1.0, 0.0]])
    >>> group = Group("fc", "hidden unit", 2, (Slice("weight", 0, torch.tensor([[0], [1]]), "writes"),))
    >>> evidence = Evidence(layer, batches=[(torch.ones(1, 2), None)], loss=lambda output, _: output.sum())
    >>> taylor_weights(evidence.with_structure(Structure((group,), {}, frozenset({"weight"}))))["fc"]
    tensor([1., 1.], dtype=torch.float64)
    """
    parameters = parameters_by_name(evidence.model)
    for group in evidence.units:
        if not group.writers:
            raise ValueError(f"no weight writes the units of {group.name!r}: leave it out of the pattern")
    names = list(dict.fromkeys(part.tensor for group in evidence.units for part in group.writers))
    sums: dict[str, Tensor] = {}

    def see(loss: Tensor, given: object) -> None:
        grads = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
        found = dict(zip(names, grads))
        for group in evidence.units:
            effect = torch.zeros(group.size, dtype=torch.float64, device=loss.device)
            for part in group.writers:
                weight, grad = parameters[part.tensor].detach(), found[part.tensor]
                if grad is not None:
                    effect += part.entries(weight.double() * grad.double()).sum(dim=1).to(effect.device)
            score = effect.square()
            sums[group.name] = sums[group.name] + score if group.name in sums else score

    count = evidence.for_each_batch(see)
    return evidence.averaged({name: score / count for name, score in sums.items()})


def multiply_adds(structure: Structure, group: Group) -> float:
    """Return the multiply-adds, for the example that the structure was found with, that leave with one unit of a group."""
    taken: dict[tuple[str, int], int] = {}
    for part in group.slices:
        key = part.tensor, part.axis
        taken[key] = taken.get(key, 0) + part.positions.shape[1]
    saved = 0.0
    for work in structure.work:
        stays = 1.0
        for name, axis in work.axes:
            stays *= 1 - taken.get((name, axis), 0) / structure.shapes[name][axis]
        saved += work.count * (1 - stays)
    return saved
