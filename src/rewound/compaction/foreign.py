"""What can leave under any mask, whoever made it: zeros are zeros.

A mask of :func:`rewound.prune` masks a unit whole: what writes it, what reads it, its bias and norm. Others mask filters
alone (``torch.nn.utils.prune.ln_structured``), and then the masked network still computes with what the bias and the batch norm
leave of the channel. What was measured is that network, so what leaves has to be nothing to *it*: a unit leaves if what reads
it would not miss it, because it is zero, or multiplied by zeros, or a constant that goes into a bias (``constants``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rewound.compaction.atoms import Cells
from rewound.compaction.constants.holding import told
from rewound.compaction.constants.reckoner import Constants, Read, constants
from rewound.compaction.coupling import Coupling, kept_rows
from rewound.compaction.units import Certificate, Group, alive
from rewound.parameters import canonical

Units = dict[str, Tensor]  # group -> bool [size]
Survivors = Mapping[str, Mapping[int, Tensor]]  # tensor -> axis -> bool, which positions are left


@dataclass(frozen=True)
class Leaving:
    """kept: group -> bool [size], which of its units stay, of the groups that lose any. folds: name of a bias -> float64, what is
    added to it. new: those among them that are not there yet -> their module. staying: of units whose filters are masked and that
    stay all the same: why."""

    kept: Units
    folds: Mapping[str, Tensor] = field(default_factory=dict)
    new: Mapping[str, str] = field(default_factory=dict)
    staying: tuple[str, ...] = ()


def wholly_masked(coupling: Coupling, mask: Mapping[str, Tensor]) -> Leaving:
    """Return the units of which everything is masked."""
    return Leaving(
        {name: units for name, units in alive(coupling.structure, mask).items() if not bool(units.all())}
    )


def leaving(model: nn.Module, coupling: Coupling, mask: Mapping[str, Tensor] | None) -> Leaving:
    """Return every unit that the masked network would not miss.

    mask: only units that it names are looked at: those of which it masks a whole row or column of some tensor. None or empty:
    all, for the zeros that are in the tensors.
    """
    structure = coupling.structure
    held = {} if mask else _masked(model, {})
    present = mask or {name: held[name] != 0 for name in structure.parameters}
    search = _Search(model, coupling, present)
    search.whole = {name: ~units for name, units in alive(structure, present).items()}
    if not mask:
        for group in structure:
            if group.certificate > Certificate.EXACT_AFTER_RESCALE:
                search.whole[group.name].fill_(False)
    return search.run()


class _Search:
    """The largest set of units that can leave together: begin with all that are asked for, and take back what would be missed."""

    def __init__(self, model: nn.Module, coupling: Coupling, present: Mapping[str, Tensor]) -> None:
        self.model, self.coupling, self.present = model, coupling, present
        self.whole: Units = {}
        self.missed: dict[str, dict[int, str]] = {group.name: {} for group in coupling.structure}
        self._resolved: dict[int, Cells] = {}
        self._lines: dict[tuple[str, int], Tensor] = {}

    def run(self) -> Leaving:
        asked = {
            group.name: self._touched(group, {}) & ~self.whole[group.name]
            for group in self.coupling.structure
        }
        if not any(bool(units.any()) for units in asked.values()):
            gone = self._spared(self.whole)
            return Leaving(self._kept(gone), staying=tuple(self._staying(gone)))
        found = constants(self.model, self.coupling, _masked(self.model, self.present))
        while True:
            gone = self._spared(
                {name: self.whole[name] | units & ~self._taken_back(name) for name, units in asked.items()}
            )
            folds = self._folds(found, gone)
            if folds is None:
                continue  # some were taken back
            left = survivors(self.coupling, gone)
            more = {
                g.name: asked[g.name] | self._touched(g, left) & ~self.whole[g.name]
                for g in self.coupling.structure
            }
            if all(torch.equal(asked[name], more[name]) for name in asked):
                new = {name: path for name, path in found.new.items() if name in folds}
                return Leaving(self._kept(gone), folds, new, tuple(self._staying(gone)))
            asked = more
            self.missed = {name: {} for name in self.missed}

    # ---- which are asked for -----------------------------------------------------------------------------------------

    def _touched(
        self, group: Group, left: Survivors, roles: tuple[str, ...] = ("writes", "reads", "affine")
    ) -> Tensor:
        """Which units have a whole row or column masked, in what is left when others are gone (``survivors``)."""
        found = torch.zeros(group.size, dtype=torch.bool)
        if group.certificate <= Certificate.EXACT_AFTER_RESCALE or roles == ("writes",):
            for s in group.slices:
                if s.role in roles and s.tensor in self.present:
                    found |= self._masked_lines(s.tensor, s.axis, left)[s.positions].all(1)
        return found

    def _masked_lines(self, name: str, axis: int, left: Survivors) -> Tensor:
        present = self.present[name]
        cut = [(other, line) for other, line in left.get(name, {}).items() if other != axis]
        if (name, axis) not in self._lines:
            others = tuple(k for k in range(present.ndim) if k != axis)
            self._lines[name, axis] = (~(present.any(others) if others else present)).cpu()
        if not cut:
            return self._lines[name, axis]
        for other, line in cut:
            present = present.index_select(other, line.nonzero().reshape(-1).to(present.device))
        return ~present.any(tuple(k for k in range(present.ndim) if k != axis)).cpu()

    def _taken_back(self, name: str) -> Tensor:
        found = torch.zeros(len(self.whole[name]), dtype=torch.bool)
        found[list(self.missed[name])] = True
        return found

    @staticmethod
    def _spared(gone: Units) -> Units:
        """Every group keeps one unit, be it of zeros: without any there is no network."""
        spared = {}
        for name, units in gone.items():
            if bool(units.all()):
                units = units.clone()
                units[0] = False
            spared[name] = units
        return spared

    # ---- which would be missed ---------------------------------------------------------------------------------------

    def _folds(self, found: Constants, gone: Units) -> dict[str, Tensor] | None:
        """Return what is added to biases; None if units had to be taken back."""
        dead = self.coupling.dead(self._kept(gone))
        counts: dict[str, int] = {}
        for read in found.reads:
            if read.bias is not None:
                counts[read.bias] = counts.get(read.bias, 0) + 1
        folds: dict[str, list[tuple[Read, Tensor, Tensor]]] = {}
        back = False
        for read in found.reads:
            needed = self._needed(read, dead)
            foldable = read.bias is not None and counts[read.bias] == found.users[read.bias]
            missed = needed & (read.held.isnan() | (read.held != 0) & (not foldable))
            if bool(missed.any()):
                back |= self._take_back(read, missed, dead)
            if foldable and read.weight is not None:
                held = torch.where(needed & ~missed, read.held.nan_to_num(), 0.0)
                delta = read.held.new_zeros(())
                if bool((held != 0).any()):
                    matrix = read.weight()
                    delta = (matrix * held.reshape(len(matrix), 1, -1)).sum(2).reshape(-1)
                folds.setdefault(read.bias, []).append((read, delta, held != 0))  # type: ignore[arg-type]
        for several in folds.values():
            first = several[0][1]
            if any(not torch.equal(delta, first) for _, delta, _ in several):
                for read, _, nonzero in several:
                    back |= self._take_back(
                        read, nonzero, dead, "is called several times, with different constants"
                    )
        if back:
            return None
        return {name: several[0][1] for name, several in folds.items() if several[0][1].ndim}

    def _needed(self, read: Read, dead: np.ndarray) -> Tensor:
        """Which positions leave that anything depends on which stays."""
        removed = torch.from_numpy(dead[self._cells(read)].any(axis=1))
        if read.uses is None or read.out is None or not bool(removed.any()):
            return removed
        stays = torch.from_numpy(kept_rows(self.coupling.atoms, read.out, dead)).reshape(
            len(read.uses), -1, 1
        )
        return removed & (read.uses.cpu() & stays).any(1).reshape(-1)

    def _take_back(self, read: Read, missed: Tensor, dead: np.ndarray, why: str = "") -> bool:
        """Let the units of these positions stay; whether there are any that are not masked whole."""
        cells = self._cells(read)
        back = False
        for name, roots in self.coupling.roots.items():
            units = torch.from_numpy(np.isin(roots, cells[missed.numpy()]) & dead[roots]) & ~self.whole[name]
            for unit in units.nonzero().reshape(-1).tolist():
                if unit not in self.missed[name]:
                    at = np.flatnonzero((cells == roots[unit]).any(axis=1) & missed.numpy())[0]
                    self.missed[name][unit] = (why and f"{told(read.node)} {why}") or _why(
                        read, float(read.held[at])
                    )
                    back = True
        return back

    def _cells(self, read: Read) -> Cells:
        if id(read) not in self._resolved:
            self._resolved[id(read)] = self.coupling.atoms.resolve(read.cells)
        return self._resolved[id(read)]

    # ---- the answer --------------------------------------------------------------------------------------------------

    @staticmethod
    def _kept(gone: Units) -> Units:
        return {name: ~units for name, units in gone.items() if bool(units.any())}

    def _staying(self, gone: Units) -> Iterator[str]:
        for group in self.coupling.structure:
            stays = self._touched(group, {}, ("writes",)) & ~gone[group.name]
            whys = [self._why_it_stays(group, unit) for unit in stays.nonzero().reshape(-1).tolist()]
            for why in dict.fromkeys(whys):
                n = whys.count(why)
                yield f"{n} of the {group.size} units of {group.name!r} ({group.kind}) stay, since {why}"

    def _why_it_stays(self, group: Group, unit: int) -> str:
        if group.certificate > Certificate.EXACT_AFTER_RESCALE:
            return f"their removal is {str(group.certificate).lower()} ({group.why})"
        return self.missed[group.name].get(unit, "one unit has to stay")


def _why(read: Read, held: float) -> str:
    """Say why a unit stays."""
    if read.weight is None:
        return f"{told(read.node)} {read.why}, and they are not zero there"
    if held != held:
        return f"{told(read.node)} reads them, and they vary with the input: not all that writes them is zero"
    return f"they hold a constant that cannot be folded: {read.why or f'{told(read.node)} shares its bias'}"


def survivors(coupling: Coupling, gone: Units) -> dict[str, dict[int, Tensor]]:
    """Return tensor -> axis -> bool, which positions are left when these units are gone."""
    lines: dict[str, dict[int, Tensor]] = {}
    shapes = coupling.structure.shapes
    for group in coupling.structure:
        units = gone.get(group.name)
        if units is None or not bool(units.any()):
            continue
        for s in group.slices:
            axes = lines.setdefault(s.tensor, {})
            if s.axis not in axes:
                axes[s.axis] = torch.ones(shapes[s.tensor][s.axis], dtype=torch.bool)
            axes[s.axis][s.positions[units].reshape(-1)] = False
    return lines


def _masked(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the masked network by its names, on the CPU."""
    found: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        if id(tensor) not in found:
            keep, held = mask.get(canonical(name)), tensor.detach().cpu()
            found[id(tensor)] = held if keep is None or bool(keep.all()) else held.masked_fill(~keep.cpu(), 0)
        named[canonical(name)] = found[id(tensor)]
    return named
