"""Where a run keeps what it must not lose: in its folder, or in memory where it has none; on every rank alike."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewound import ranks
from rewound.folder import Folder, read_json

# What of a configuration an original run depends on; the technique and what is pruned come after it.
_TRAINING = ("epochs", "seed", "parameters", "optimizer", "groups", "scheduler", "extras", "processes")
SHARE_OF_TIME = 0.005  # states are written as often as possible without taking more of the time than this


class Store:
    """Snapshots by name and number, and the newest states to go on from.

    ``path`` None keeps snapshots in memory and writes nothing else. With several processes, every rank keeps its own part.
    ``original``: the folder of another run, whose end of the original run and snapshots at the epochs of ``needs`` a new one
    begins with.
    """

    def __init__(
        self,
        path: Any | None,
        configuration: Mapping[str, Any],
        original: Path | None = None,
        needs: Mapping[int, Sequence[str]] = {},
    ) -> None:
        self.folder: Folder | None = None
        self._memory: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._traces: dict[int, Mapping[str, Any]] = {}
        self._content: Mapping[str, Any] | None = None
        self._last_cost = 0.0
        self._last_time = -float("inf")
        if path is not None:
            try:
                ranks.together(lambda: self._enter(path))
                begun = ranks.from_first(ranks.together(lambda: self._claim(configuration)))
                self._content = self._newest()
                if self._content is None and original is not None:
                    ranks.together(lambda: self._adopt(original, configuration, needs))
                    self._content = self._newest()
            except BaseException:
                self.close()
                raise
            if begun and self._content is None:
                warnings.warn(
                    f"{str(path)!r} holds no intact state; the run starts from the beginning", stacklevel=4
                )

    def _enter(self, path: Any) -> None:
        self.folder = Folder(path, ranks.rank())

    def _claim(self, configuration: Mapping[str, Any]) -> bool:
        """Claim the folder (rank 0 does, for all) and return whether a run had begun in it."""
        assert self.folder is not None
        if ranks.rank() != 0:
            return False
        begun = self.folder.configuration is not None
        self.folder.claim(configuration, replaceable=self._replaceable)
        return begun

    def _adopt(
        self, original: Path, configuration: Mapping[str, Any], needs: Mapping[int, Sequence[str]]
    ) -> None:
        """Take over what the original run in another folder left; ``ValueError`` where it is of another training."""
        assert self.folder is not None
        there = read_json(original / "run.json")
        if there is None or not (read_json(original / "result.json") or {}).get("finished"):
            raise ValueError(f"{str(original)!r} holds no original run that is finished (until='0 rounds')")
        here = json.loads(json.dumps(configuration))
        # Movement is summed up while the original network trains, over the weights in scope.
        watched = ("criterion", "scope") if "movement" in (there["criterion"], here["criterion"]) else ()
        apart = [
            f"{key}: {there.get(key)!r} there, {here[key]!r} here"
            for key in (*_TRAINING, *watched)
            if there.get(key) != here[key]
        ]
        if apart:
            raise ValueError(
                f"the original run in {str(original)!r} is of another training: " + "; ".join(apart)
            )
        end = here["epochs"]
        wanted = {
            ("rewind" if epoch else "initial", epoch): parts for epoch, parts in needs.items() if epoch < end
        }
        self.folder.adopt(original, wanted)
        for (kind, epoch), parts in wanted.items():
            state = self.folder.load_state(kind, epoch)
            if any(state[part] is None for part in parts):
                raise ValueError(
                    f"the snapshot of epoch {epoch} in {str(original)!r} has not all that this run needs ({', '.join(parts)}); "
                    f"let that run keep it whole, with snapshots=[{epoch}]"
                )
        self.folder.adopt(original, [("epoch", end)])  # last: what is killed before it begins anew

    def _replaceable(self) -> tuple[str, ...]:
        """While only the original run has been trained, another technique that needs the same snapshots may go on."""
        assert self.folder is not None
        numbers = self.folder.state_numbers(
            "epoch"
        )  # rank 0's own: it asks alone, the others wait for its answer
        round = self.folder.load_state("epoch", numbers[0])["progress"]["round"] if numbers else None
        return ("technique",) if round == 0 else ()

    def close(self) -> None:
        """Let other processes in, and let the snapshots in memory go: a run is iterated once. Traces stay."""
        self._memory.clear()
        if self.folder is not None:
            self.folder.close()

    def newest(self) -> Mapping[str, Any] | None:
        """Return the newest state that is intact on every rank, or None; once, so that its memory is freed."""
        content, self._content = self._content, None
        return content

    def _newest(self) -> Mapping[str, Any] | None:
        assert self.folder is not None
        offered = ranks.gathered(self.folder.state_numbers("epoch"))
        common = set(offered[0]).intersection(*offered[1:])
        folder = self.folder
        return ranks.together(lambda: folder.load_state("epoch", max(common))) if common else None

    def save_newest(self, number: int, content: Callable[[], Mapping[str, Any]], force: bool = False) -> None:
        """Write a state to go on from, if one is due: the time since the last one has paid for it."""
        if self.folder is None:
            return
        due = time.monotonic() - self._last_time >= self._last_cost / SHARE_OF_TIME
        if not ranks.from_first(force or due):
            return
        folder, start = self.folder, time.monotonic()
        # No rank runs ahead of the others by more than one state.
        ranks.together(lambda: folder.save_state("epoch", number, content(), keep=2))
        self._last_time = time.monotonic()
        self._last_cost = self._last_time - start

    def keep(self, kind: str, number: int, content: Mapping[str, Any], count: int = 1) -> None:
        """Keep a snapshot; of each kind only the newest ``count``."""
        if self.folder is None:
            others = sorted(key for key in self._memory if key[0] == kind and key[1] != number)
            for key in others[: max(0, len(others) - count + 1)]:
                del self._memory[key]
            self._memory[kind, number] = content
            return
        folder = self.folder
        ranks.together(lambda: folder.save_state(kind, number, content, keep=count))

    def fetch(self, kind: str, number: int) -> Mapping[str, Any]:
        """Return a snapshot."""
        if self.folder is None:
            return self._memory[kind, number]
        folder = self.folder
        return ranks.together(lambda: folder.load_state(kind, number))

    def finish_round(
        self, index: int, trace: Mapping[str, Any], mask: Mapping[str, Any] | None, result: Any
    ) -> None:
        """Keep a finished round's trace and mask, and show the results so far."""
        if self.folder is None:
            self._traces[index] = trace
            return
        folder = self.folder

        def write() -> None:
            folder.save_round(index, "trace", trace)
            if mask is not None:
                folder.save_round(index, "mask", mask)
            folder.write_json("result.json", result)

        ranks.together(write)  # rank 0 wrote for all, and any of them may read it next

    def trace(self, index: int) -> Mapping[str, Any]:
        """Return a finished round's trace."""
        return self._traces[index] if self.folder is None else self.folder.load_round(index, "trace")

    def mask(self, index: int) -> Mapping[str, Any]:
        """Return a finished round's mask."""
        assert self.folder is not None
        return self.folder.load_round(index, "mask")
