"""Prune neural networks by rewinding: weight rewinding, learning-rate rewinding and fine-tuning in anybody's loop.

The public names are below; each is imported when it is first used, so that ``rewound --help`` never pays for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewound.compaction.coordinates import Coordinates, coordinates
    from rewound.compaction.coupling import find_units
    from rewound.compaction.files import load, save
    from rewound.compaction.optimizers import carry_over
    from rewound.compaction.surgery import compact
    from rewound.compaction.units import Certificate, Structure
    from rewound.evidence import Evidence
    from rewound.guarding import Guard, guard
    from rewound.mask import Mask
    from rewound.movement import watch_movement
    from rewound.plan import Plan, Until
    from rewound.pruning import prune
    from rewound.result import Result, Round, SearchCost
    from rewound.run import Run
    from rewound.scope import Scope, find_scope
    from rewound.techniques import (
        Technique,
        adaptive_linear_restart,
        cyclic_restart,
        fine_tuning,
        gradual_pruning,
        learning_rate_rewinding,
        linear_restart,
        lottery_ticket,
        low_lr_weight_rewinding,
        parse_technique,
        reinitialization,
        scaled_restart,
        weight_rewinding,
    )
    from rewound.trace import Trace
    from rewound.widths.goals import for_multiply_adds, for_parameters, for_speedup
    from rewound.widths.report import Widths

_WHERE = {
    "Run": "run",
    "compact": "compaction.surgery",
    "carry_over": "compaction.optimizers",
    "find_units": "compaction.coupling",
    "Structure": "compaction.units",
    "Certificate": "compaction.units",
    "save": "compaction.files",
    "load": "compaction.files",
    "coordinates": "compaction.coordinates",
    "Coordinates": "compaction.coordinates",
    "prune": "pruning",
    "for_speedup": "widths.goals",
    "for_multiply_adds": "widths.goals",
    "for_parameters": "widths.goals",
    "Widths": "widths.report",
    "guard": "guarding",
    "Mask": "mask",
    "Scope": "scope",
    "find_scope": "scope",
    "Evidence": "evidence",
    "watch_movement": "movement",
    "Guard": "guarding",
    "Trace": "trace",
    "Plan": "plan",
    "Until": "plan",
    "Result": "result",
    "Round": "result",
    "SearchCost": "result",
    "Technique": "techniques",
    "parse_technique": "techniques",
    "fine_tuning": "techniques",
    "gradual_pruning": "techniques",
    "learning_rate_rewinding": "techniques",
    "weight_rewinding": "techniques",
    "low_lr_weight_rewinding": "techniques",
    "reinitialization": "techniques",
    "lottery_ticket": "techniques",
    "scaled_restart": "techniques",
    "cyclic_restart": "techniques",
    "linear_restart": "techniques",
    "adaptive_linear_restart": "techniques",
}

__all__ = [
    # the machinery in one's own loop
    "Run",
    "prune",
    "guard",
    "Mask",
    "Guard",
    "Scope",
    "find_scope",
    "Evidence",
    "watch_movement",
    "Trace",
    "Plan",
    "Until",
    "Result",
    "Round",
    "SearchCost",
    # smaller networks
    "compact",
    "carry_over",
    "find_units",
    "Structure",
    "Certificate",
    "save",
    "load",
    "coordinates",
    "Coordinates",
    "for_speedup",
    "for_multiply_adds",
    "for_parameters",
    "Widths",
    # the table
    "Technique",
    "parse_technique",
    "fine_tuning",
    "gradual_pruning",
    "learning_rate_rewinding",
    "weight_rewinding",
    "low_lr_weight_rewinding",
    "reinitialization",
    "lottery_ticket",
    "scaled_restart",
    "cyclic_restart",
    "linear_restart",
    "adaptive_linear_restart",
]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'rewound' has no attribute {name!r}; it offers {', '.join(__all__)}")
    found = getattr(importlib.import_module(f"rewound.{module}"), name)
    # The module of the same name (rewound.prune, rewound.guard) would otherwise stand in the function's place.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
