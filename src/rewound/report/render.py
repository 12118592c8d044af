"""From sections to the page: one HTML document with its style, its script and its figures inside, asking nobody for anything.

Jinja escapes every text that comes from an experiment. The page's own policy allows one script, by its hash, and no request:
a text that got through all the same would find nothing that runs it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from rewound.report.figures.canvas import COLOURS
from rewound.report.parts import Cell, Section, clean, shown

_DASHES = ("solid", "dashed", "dotted", "double")  # nearest in CSS to those of the figures
_LISTS = ("verdict", "caveats", "runs")  # sections whose sentences are points of a list


def render(
    title: str,
    about: str,
    sections: Sequence[Section],
    *,
    names: Mapping[int, str],
    published: Sequence[str] = (),
    made: str = "",
    live: str = "",
) -> str:
    """Return the page. ``names``: series by number; ``published``: what may lie behind; ``live``: the version of a live page."""
    jinja2 = _jinja2()
    from markupsafe import Markup

    files = resources.files("rewound.report") / "page"
    html, css, dark, script = (
        (files / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "dark.css", "page.js")
    )
    themes = (
        f'@media screen{{:root[data-theme="dark"]{{{dark}}}}}\n'
        f'@media screen and (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{{dark}}}}}'
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    policy += f"; connect-src {chr(39)}self{chr(39)}" * bool(live)
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)
        ),
    )
    environment.filters.update(shown=_shown, as_link=_as_link)
    return str(
        environment.from_string(html).render(
            title=title,
            about=about,
            sections=sections,
            names=[(k, name, _swatch(k)) for k, name in names.items()],
            published=published,
            lists=_LISTS,
            made=made,
            live=live,
            policy=policy,
            css=Markup(css.replace("/*dark*/", themes)),
            script=Markup(script),
        )
    )


def _shown(cell: Cell) -> str:
    text = shown(cell)
    return (
        re.sub(r"(?<=\d)-(?=\d)", "\u2011", text) if isinstance(cell, str) else text
    )  # ranges stay in one line


def _as_link(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _swatch(k: int) -> str:
    dash = _DASHES[k // len(COLOURS) % len(_DASHES)]
    return f"border-top-color:var(--s{k % len(COLOURS)});border-top-style:{dash}"


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report's page is set by Jinja: pip install 'rewound[report]'") from error
    return jinja2
