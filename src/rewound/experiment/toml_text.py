"""Plain values as TOML text, and the right side of ``--set`` as a value: the standard library only reads whole files."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["key_text", "parse_value", "toml_value", "tomllib"]


def parse_value(text: str) -> Any:
    """Read the right side of ``--set``: a TOML value, or else a plain text; lists may hold bare words.

    >>> [parse_value(t) for t in ("0.2", "true", "20x", "[0, 1]", "[fine-tuning, lr-rewinding]")]
    [0.2, True, '20x', [0, 1], ['fine-tuning', 'lr-rewinding']]
    """
    text = text.strip()
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [parse_value(part) for part in text[1:-1].split(",") if part.strip()]
        return text


def key_text(key: str) -> str:
    """Return a key as TOML writes it: bare, or in quotes."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def toml_value(value: Any) -> str:
    """Return a plain value as TOML writes it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key_text(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value).lower() if isinstance(value, bool) else repr(value)
