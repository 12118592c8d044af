"""A run's model as a smaller network: cut round by round, and everything else that training depends on cut alike.

Masks, snapshots and decisions stay in the coordinates of the original network. To decide what goes next, a dense twin gets the
present weights (zeros where something left), so that every criterion sees what it would see in masked training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rewound import ranks
from rewound.compaction.coordinates import Coordinates, coordinates
from rewound.compaction.shrinking import grow_, require_shrinkable, shrink_
from rewound.compaction.units import Certificate
from rewound.live import Live
from rewound.mask import Mask
from rewound.parameters import parameters_by_name, unwrap_model
from rewound.patterns.units import EachUnit
from rewound.rounds import Rounds
from rewound.state import State, persistent_tensors


class Smaller:
    """The live model, cut; ``twin`` is the original network that lends it its shapes."""

    def __init__(self, live: Live, example: Any, pruning: Rounds) -> None:
        if not isinstance(pruning.units, EachUnit):
            raise ValueError(
                f"shrink=True takes units out of the model, and pattern {pruning.told['pattern']!r} prunes "
                f"{pruning.units.what}; give pattern='channel', 'head', 'hidden unit' or 'unit', and an example"
            )
        inexact = [g for g in pruning.units.structure if g.certificate > Certificate.EXACT_AFTER_FOLD]
        if inexact:
            raise ValueError(
                f"shrink=True needs units that leave exactly; {inexact[0].name!r} is {inexact[0].certificate}: leave 'allow' out"
            )
        if live.movement is not None or pruning.told["criterion"] == "movement":
            raise ValueError(
                "criterion 'movement' keeps a record of the whole network; use it with shrink=False"
            )
        if ranks.world_size() > 1:
            raise ValueError("shrink=True works in one process; train masked (shrink=False) on several")
        require_shrinkable(live.model)
        self._live, self._example = live, example
        self._twin = copy.deepcopy(unwrap_model(live.model))

    @property
    def where(self) -> Coordinates:
        """Where the entries of the live model are in the network that the run began with."""
        return coordinates(self._live.model).since(coordinates(self._twin))

    def twin(self) -> nn.Module:
        """Return the original network with the present weights, zero where something has left; in the same mode."""
        where, live = self.where, persistent_tensors(self._live.model)
        with torch.no_grad():
            for name, tensor in persistent_tensors(self._twin).items():
                tensor.copy_(where.put_back(name, live[name]))
        for mine, theirs in zip(self._twin.modules(), unwrap_model(self._live.model).modules()):
            mine.training = theirs.training
        return self._twin

    def follow(self, mask: Mask) -> None:
        """Cut the live model, its optimizer's state and its averages to what ``mask`` keeps."""
        where = self.where
        present = Mask({name: where.cut(name, kept) for name, kept in mask.items()})
        if not bool(all(kept.all() for kept in present.values())):
            live = self._live
            shrink_(live.model, present, self._example, optimizers=[live.optimizer], copies=live.copies)

    def become(self, mask: Mask | None) -> None:
        """Give the live model the shapes of ``mask`` (None: of the original), whatever it is now; values are to be restored."""
        if self.where.kept:
            for model in (self._live.model, *self._live.copies):
                grow_(model, self._twin)
            # what an optimizer keeps is of the old shapes, and will be restored with the weights
            self._live.optimizer.state.clear()
        if mask is not None:
            with (
                torch.no_grad()
            ):  # something to prove the cut on: a network of zeros would agree with any other
                for model in (self._live.model, *self._live.copies):
                    live = persistent_tensors(model)
                    for name, tensor in persistent_tensors(self._twin).items():
                        live[name].copy_(tensor)
            self.follow(mask)

    def guarded(self, mask: Mask) -> Mask:
        """Return ``mask`` in the coordinates of the live model, where everything is kept."""
        where = self.where
        return Mask({name: where.cut(name, kept) for name, kept in mask.items()})

    def cut(self, state: State) -> State:
        """Return a state of the original network (or of an earlier, larger one) as one of the present network."""
        where, optimizer = self.where, state.optimizer
        if optimizer is not None:
            names = {id(p): name for name, p in parameters_by_name(self._live.model).items()}
            order = [names.get(id(p)) for group in self._live.optimizer.param_groups for p in group["params"]]
            slots = {
                i: {
                    slot: {**held, "value": self._cut(order[int(i)], held["value"])}
                    for slot, held in values.items()
                }
                for i, values in optimizer["by_parameter"].items()
            }
            optimizer = {**optimizer, "by_parameter": slots}
        return State(
            model=None if state.model is None else where.cut_all(state.model),
            optimizer=optimizer,
            clock=state.clock,
            rng=state.rng,
            extras=None if state.extras is None else [self._cut_named(extra) for extra in state.extras],
        )

    def initializing(self, initialize: Callable[[nn.Module, int], None]) -> Callable[[nn.Module, int], None]:
        """Return ``initialize`` so that the present network gets its part of what the original one would be given."""

        def draw(model: nn.Module, seed: int) -> None:
            twin = self.twin()
            initialize(twin, seed)
            drawn = self.where.cut_all(persistent_tensors(twin))
            with torch.no_grad():
                for name, tensor in persistent_tensors(model).items():
                    tensor.copy_(drawn[name])

        return draw

    def _cut(self, name: str | None, value: Any) -> Any:
        if name is None or not isinstance(value, Tensor) or value.shape != self.where.shapes.get(name):
            return value
        return self.where.cut(name, value)

    def _cut_named(self, value: Any) -> Any:
        """Cut tensors of an extra's state that go by a parameter's name (an average's go by ``module.`` and the name)."""
        if not isinstance(value, Mapping):
            return value
        return {
            key: self._cut(key.removeprefix("module."), item)
            if isinstance(key, str) and isinstance(item, Tensor)
            else self._cut_named(item)
            for key, item in value.items()
        }
