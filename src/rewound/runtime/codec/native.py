"""The decoders of csrc/decode.cc, or None where the native module is not there: numpy does the same, ten times as slowly."""

from __future__ import annotations

from importlib import import_module
from typing import Any

try:
    _module: Any = import_module("rewound.runtime._native")
except ImportError:
    _module = None

decode_bitmap: Any = getattr(_module, "decode_bitmap", None)
decode_deltas: Any = getattr(_module, "decode_deltas", None)
decode_codes: Any = getattr(_module, "decode_codes", None)
