"""How many multiplications EIE makes for a network's linear layers (Han et al. 2016, ISCA): of weights that are there, with
activations that are not zero.

Per layer and input vector (``codec/eie.py``): rows x columns for a dense engine; the survivors for one that skips zero weights;
for EIE the survivors in columns whose activation is not zero, and the padding zeros between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from rewound.parameters import named_modules, unwrap_model, whole
from rewound.runtime.codec import eie
from rewound.runtime.codec.eie import Work
from rewound.untouched import as_found, call_of


def multiplies(model: nn.Module, example: Any, *, elements: int = 64) -> dict[str, Work]:
    """Return for each linear layer by its name what EIE does for the whole batch ``example``.

    example: a tensor, a tuple of positional or a dict of keyword arguments; real inputs, since it is their zeros, and those
    of the activations behind them, that are skipped. elements: EIE's processing elements; rows are dealt to them in turn.
    The model is looked at in evaluation mode and left as found; layers that do not run are left out.

    ``Work`` has multiplications (dense, weights, useful, entries) and cycles, summed over the vectors; two of them add up.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = model[0].weight.data.copy_(torch.eye(8))
    >>> found = multiplies(model, torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, -2.0]]))
    >>> found["0"].dense, found["0"].weights, found["0"].useful, found["2"].useful    # -2 does not get past the ReLU
    (64, 8, 2, 2)
    """
    model = unwrap_model(model)
    found: dict[str, Work] = {}
    handles = []
    with as_found(model):
        try:
            for name, module in named_modules(model):
                if isinstance(module, nn.Linear):
                    counter = _counter(name, module, elements, found)
                    handles.append(module.register_forward_pre_hook(counter))
            positional, named = call_of(example)
            model(*positional, **named)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _counter(name: str, layer: nn.Linear, elements: int, found: dict[str, Work]) -> Any:
    weight = whole(layer.weight.detach()).float().cpu().numpy()
    coded = eie.encode((weight != 0).astype(np.float32), elements)
    stored = np.stack([np.diff(element.pointers) for element in coded.elements])  # [elements, in]
    survivors = np.count_nonzero(weight, axis=0)  # [in]

    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        vectors = arguments[0].detach().reshape(-1, layer.in_features)
        active = (vectors != 0).cpu().numpy().astype(np.float64)  # [vectors, in]; sums below 2^53 are exact
        busy = active @ stored.T
        work = Work(
            weight.size * len(active),
            int(survivors.sum()) * len(active),
            int((active @ survivors).sum()),
            int(busy.sum()),
            int(busy.max(axis=1).sum()) if len(active) else 0,
            int((active @ stored.max(axis=0)).sum()),
        )
        found[name] = found[name] + work if name in found else work

    return count
