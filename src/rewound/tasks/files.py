"""Find a data set on disk, or say in one sentence what to get and where to put it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def find_folder(
    name: str, wanted: Sequence[str], advice: str, folder: str | Path | None = None, known: Sequence[str] = ()
) -> Path:
    """Return the first folder that holds all of ``wanted`` (each a file or folder, or a pattern such
    as "*.tsv"; "a|b": either of them).

    Looked in: ``folder`` alone if it is given; else $REWOUND_DATA/<name>, $REWOUND_DATA, ./data/<name> and
    ``known``. Raises ``FileNotFoundError`` with ``advice`` (what to get) and the place to put it.
    """
    if folder is not None:
        places = [Path(folder).expanduser()]
    else:
        root = os.environ.get("REWOUND_DATA")
        places = [Path(root).expanduser() / name, Path(root).expanduser()] if root else []
        places += [Path("data") / name, *map(Path, known)]
    for place in places:
        if all(any(any(place.glob(one)) for one in item.split("|")) for item in wanted):
            return place
    raise FileNotFoundError(
        f"{name} is not there: get {advice} and put it in {places[0]}"
        + ("" if folder is not None else f" (or set REWOUND_DATA to the folder that holds {name}/)")
    )
