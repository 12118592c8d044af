"""Did two runs find the same network? Masks and signs of finished runs compared, round by round, from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewound.experiment import store

if TYPE_CHECKING:
    from rewound.mask import Mask


@dataclass(frozen=True)
class Likeness:
    """Two networks of one density. jaccard: weights that both keep, of those that either does; by_chance: for random masks of the
    same layer densities; beyond_chance: 0 for those, 1 for equal masks. signs_apart: share of the weights that both keep whose
    signs differ; None for any but the last round, whose weights alone are kept."""

    density: float
    jaccard: float
    by_chance: float
    beyond_chance: float
    signs_apart: float | None


def likeness(one: str | Path, other: str | Path) -> list[Likeness]:
    """Compare two finished runs, given their folders, in the rounds in which they have the same density.

    A run that a metric stopped is compared up to the round that was kept. Raises ``FileNotFoundError`` for a folder without a
    finished run, ``ValueError`` for runs of different networks.
    """
    from rewound.experiment.networks import tensors_of
    from rewound.papers.overlap import all_sign_flips, overlap

    folders = [Path(one), Path(other)]
    results = [_result(folder) for folder in folders]
    indices = [_rounds(result) for result in results]
    found = []
    for density in sorted(indices[0].keys() & indices[1].keys(), reverse=True):
        a, b = (_mask(folder, rounds[density]) for folder, rounds in zip(folders, indices))
        alike, signs = overlap(a, b), None
        if (
            all(rounds[density] == result["best"] for rounds, result in zip(indices, results))
            and alike.shared
        ):
            ours, theirs = (tensors_of(folder, result) for folder, result in zip(folders, results))
            signs = all_sign_flips(ours, theirs, a & b)
        found.append(Likeness(density, alike.jaccard, alike.by_chance, alike.beyond_chance, signs))
    return found


def _result(folder: Path) -> Mapping[str, Any]:
    path = folder / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no run in {folder} (no result.json)")
    result = store.read_json(path)
    if "best" not in result or not result.get("rounds"):
        raise FileNotFoundError(f"the run in {folder} has not finished")
    return result


def _rounds(result: Mapping[str, Any]) -> dict[float, int]:
    """Return density -> index of the round, the original run left out."""
    rounds = result["rounds"][1 : result["best"] + 1]
    return {round(done["density"], 6): done["index"] for done in rounds}


def _mask(folder: Path, index: int) -> Mask:
    from rewound.folder import load_checked
    from rewound.mask import Mask

    found = sorted((folder / "rounds" / f"{index:02d}").glob("mask-*.pt"))
    if not found:
        raise FileNotFoundError(f"round {index} of {folder} has no mask")
    return Mask.from_plain(load_checked(found[0]))
