"""A pytest plugin: the tests use the native module that ``make sanitize`` built, in place of the installed one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import rewound.runtime

(_PATH,) = Path(os.environ["REWOUND_SANITIZED"]).glob("rewound/runtime/_native*.so")
_SPEC = importlib.util.spec_from_file_location("rewound.runtime._native", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
sys.modules["rewound.runtime._native"] = _MODULE
rewound.runtime._native = _MODULE
