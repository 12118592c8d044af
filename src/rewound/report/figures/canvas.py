"""Paper, pens and ink: how a figure of matplotlib becomes a piece of the page.

The SVG is rewritten once it is drawn: colours become variables of the page's theme (with the light one as fallback, so that a
downloaded figure stands alone), groups get the number of their series, by which the page hides them, points get a title, and
identifiers a prefix, for several figures share one document.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from rewound.report.parts import Figure, clean

INK, FAINT, GRID, SHADE, ORIGINAL, PUBLISHED = (
    "#1f2328",
    "#59636e",
    "#dfe3e8",
    "#e9edf1",
    "#6e7782",
    "#8b949f",
)
# Distinct for colour-blind eyes (after Okabe and Ito), each at least 3 to 1 against the paper.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#00805e",
    "#b0528a",
    "#a87400",
    "#3a8fb7",
    "#6b5d00",
    "#5b3a8e",
    "#8c2d04",
    "#444444",
)
MARKERS = "osD^vP*Xh<"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_NAMES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    SHADE: "shade",
    ORIGINAL: "original",
    PUBLISHED: "published",
    **{colour: f"s{k}" for k, colour in enumerate(COLOURS)},
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_WIDTH, _NARROW = 700, 390  # CSS pixels
_LARGE = 400_000  # letters of SVG: what is larger is drawn once, not for narrow screens too
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 12,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": GRID,
    "path.simplify": False,
}


class Canvas:
    """A figure to draw on: ``axes`` one above the other, sharing the first axis.

    ``name`` is unique on a page. Sizes are in CSS pixels at the figure's full width.
    """

    def __init__(self, name: str, height: int = 400, rows: int = 1) -> None:
        matplotlib = _matplotlib()
        from matplotlib.figure import Figure as Drawing

        self.name, self._height, self._style = name, height, matplotlib.rc_context
        self._named: tuple[list[Any], list[str]] = ([], [])
        with self._style(_STYLE):
            self._drawing = Drawing(figsize=(_WIDTH / 72, height / 72), dpi=72, layout="constrained")
            self.axes = list(self._drawing.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
        self._tips: dict[str, Sequence[str]] = {}
        for axes in self.axes:
            for edge in ("right", "top"):
                axes.spines[edge].set_visible(False)
            axes.grid(axis="y", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(length=3, labelsize=11)

    def line(self, axes: Any, k: int, x: Sequence[float], y: Sequence[float], tips: Sequence[str]) -> None:
        """Draw series ``k``'s own line with a marker at every point; ``tips`` are the points' titles."""
        gid = f"series:{k}:{len(self._tips)}"
        axes.plot(
            x,
            y,
            gid=gid,
            zorder=4,
            color=colour(k),
            linewidth=2,
            linestyle=dash(k),
            marker=marker(k),
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
        self._tips[gid] = tips

    def threads(
        self, axes: Any, k: int, lines: Sequence[Sequence[tuple[float, float]]], among: int = 1
    ) -> None:
        """Draw series ``k``'s replicates faintly, the more so ``among`` many; all of them in one path, which keeps a page of
        1,000 runs light."""
        alpha = max(0.1, min(0.4, 2.5 / among**0.5))
        nan = (float("nan"), float("nan"))
        points = [point for line in lines for point in (*line, nan)]
        dots = [point for line in lines if len(line) == 1 for point in (*line, *line, nan)]
        for some, width in ((points, 0.9), (dots, 3.0)):
            if some:
                axes.plot(
                    *zip(*some), gid=f"series:{k}:seeds", color=colour(k), alpha=alpha, linewidth=width, zorder=2,
                    solid_capstyle="round",
                )  # fmt: skip

    def legend(self, names: Mapping[int, str], controls: Collection[int] = ()) -> None:
        """Name the series in the figure itself, where they are few enough to be read there; it grows by as much.
        ``controls`` are drawn as level lines."""
        from matplotlib.lines import Line2D

        if not 0 < len(names) <= 12:
            return
        handles = [
            Line2D([], [], color=colour(k), linestyle=":", linewidth=2)
            if k in controls
            else Line2D([], [], color=colour(k), linestyle=dash(k), marker=marker(k), markersize=6)
            for k in names
        ]
        self._named = handles, [_short(name) for name in names.values()]

    def finish(self, title: str, described: str) -> Figure:
        """Return the figure for the page, for wide and for narrow screens."""
        label = clean(f"{title}. {described}")
        wide = self._saved(self.name, _WIDTH, label)
        narrow = self._saved(f"{self.name}-narrow", _NARROW, label) if len(wide) < _LARGE else ""
        return Figure(self.name, clean(title), clean(described), wide, narrow)

    def _saved(self, name: str, width: int, label: str) -> str:
        """Return the drawing as SVG, ``width`` wide."""
        self._fit(width)
        file, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with self._style({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters are of the reader's own font
            self._drawing.savefig(file, format="svg", transparent=True, metadata=nothing)
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", _XLINK)
        root = ElementTree.fromstring(file.getvalue())
        self._name_parts(root)
        for key in ("width", "height"):
            root.attrib.pop(key, None)
        root.set("role", "img")
        root.set("aria-label", label)
        return _themed(_prefixed(ElementTree.tostring(root, encoding="unicode"), name))

    def _fit(self, width: int) -> None:
        """Size the drawing, with a legend in as many columns as its width has room for."""
        handles, labels = self._named
        longest = max(map(len, labels), default=0)
        columns = max(1, min(len(labels), width // 7 // (longest + 7)))
        lines = -(-len(labels) // columns)
        self._drawing.set_size_inches(width / 72, (self._height + 20 * max(0, lines - 1)) / 72)
        for legend in list(self._drawing.legends):
            legend.remove()
        if labels:
            with self._style(_STYLE):
                self._drawing.legend(
                    handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=11.5,
                    handlelength=2.4, columnspacing=1.4,
                )  # fmt: skip

    def _name_parts(self, root: ElementTree.Element) -> None:
        for group in root.iter(f"{{{_SVG}}}g"):
            kind, _, rest = group.get("id", "").partition(":")
            if kind not in ("series", "overlay"):
                continue
            number, _, part = rest.partition(":")
            for point, tip in zip(group.iter(f"{{{_SVG}}}use"), self._tips.get(group.get("id", ""), ())):
                ElementTree.SubElement(point, f"{{{_SVG}}}title").text = clean(tip)
            del group.attrib["id"]
            group.set(f"data-{kind}", number)
            if part == "seeds":
                group.set("data-part", "seeds")


def colour(k: int) -> str:
    """Return the colour of series ``k``."""
    return COLOURS[k % len(COLOURS)]


def marker(k: int) -> str:
    """Return its marker."""
    return MARKERS[k % len(MARKERS)]


def dash(k: int) -> Any:
    """Return its dashes: they tell series of one colour apart."""
    return DASHES[k // len(COLOURS) % len(DASHES)]


def _prefixed(svg: str, name: str) -> str:
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return svg.replace("url(#", f"url(#{name}-")


def _themed(svg: str) -> str:
    """Let colours follow the page's theme, and letters its font; ``white`` is the paper."""
    svg = re.sub(r"(?<=: )#ffffff\b", "var(--paper, #ffffff)", svg)
    svg = re.sub(
        r"(?<=: )#[0-9a-f]{6}\b",
        lambda m: f"var(--{_NAMES[m[0]]}, {m[0]})" if m[0] in _NAMES else m[0],
        svg,
    )
    return re.sub(r"(font: [0-9.]+px) [^;\"]+", r"\1 system-ui, sans-serif", svg)


def _short(name: str, most: int = 60) -> str:
    name = clean(name)
    name = f"\u200b{name}" if name.startswith("_") else name  # matplotlib keeps names with _ to itself
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the report is drawn by matplotlib: pip install 'rewound[report]'") from error
    return matplotlib
