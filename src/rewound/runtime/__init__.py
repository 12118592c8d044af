"""The sparse CPU engine: a pruned network that skips its zeros. Importable without torch.

engine = rewound.runtime.compile(model, example)      # zeros of the weights are skipped from here on
engine(x)                                             # as the model: numpy in, numpy out; torch in, torch out
print(engine.report())                                # milliseconds by operator
engine.save("small.engine")
engine = rewound.runtime.load("small.engine")         # torch is not needed for this
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewound.runtime.compiling import compile, load
    from rewound.runtime.engine import Engine
    from rewound.runtime.report import Report

_WHERE = {"compile": "compiling", "load": "compiling", "Engine": "engine", "Report": "report"}

__all__ = ["Engine", "Report", "compile", "load"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(importlib.import_module(f"rewound.runtime.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
