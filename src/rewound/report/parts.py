"""What a page is made of, as plain values: tables, figures, and the sections that hold them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace

Cell = str | float | int | None

# What LaTeX reads as commands, as it is spelt to be printed.
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table: ``name`` is that of its files. ``shown`` is False for one that can be downloaded only.

    >>> table = Table("costs", "What it cost", ("technique", "epochs"), (("lr_rewinding", 380),))
    >>> table.csv.splitlines()
    ['technique,epochs', 'lr_rewinding,380']
    >>> r"lr\\_rewinding & 380" in table.latex
    True
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: bool = True

    def tagged(self, tag: str) -> Table:
        """Return the table under another file name."""
        return replace(self, name=self.name + tag)

    @property
    def csv(self) -> str:
        """The table as CSV, numbers in full; a text that a spreadsheet would take for a formula begins with an apostrophe."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_no_formula(cell) for cell in self.head])
        writer.writerows([_no_formula(cell) for cell in row] for row in self.rows)
        return file.getvalue()

    @property
    def latex(self) -> str:
        """The table for LaTeX with the package booktabs, numbers as they are shown."""
        numeric = [all(not isinstance(row[k], str) for row in self.rows) for k in range(len(self.head))]
        lines = [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if is_number else 'l' for is_number in numeric)}}}",
            r"\toprule",
            " & ".join(_latex(cell) for cell in self.head) + r" \\",
            r"\midrule",
            *(" & ".join(_latex(shown(cell)) for cell in row) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Figure:
    """A drawn figure. ``described`` says in words what is drawn, for those who do not see it; ``narrow`` is the same for small
    screens, empty where there is none."""

    name: str
    title: str
    described: str
    svg: str
    narrow: str = ""


@dataclass(frozen=True)
class Panel:
    """One way to look at a section's subject: several of them are switched by their ``label``."""

    label: str
    figure: Figure | None
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: ``says`` are its sentences, ``choice`` is what a switch between its panels is called."""

    key: str
    title: str
    says: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    choice: str = ""
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()  # (title, text to be copied): a recipe, a command

    def of_part(self, name: str, tag: str) -> Section:
        """Return the section as that of a part of a study: named, and unique among those of other parts."""
        return replace(
            self,
            key=self.key + tag,
            title=f"{self.title}: {name}" if name else self.title,
            panels=tuple(
                replace(panel, table=panel.table and panel.table.tagged(tag)) for panel in self.panels
            ),
            tables=tuple(table.tagged(tag) for table in self.tables),
        )


def shown(cell: Cell) -> str:
    """Return a cell as people read it: four significant figures, thousands parted.

    >>> shown(0.97222), shown(43163136000), shown(380), shown(None), shown(1.0), shown("a")
    ('0.9722', '4.316e+10', '380', '-', '1', 'a')
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if abs(cell) < 1e7 and cell == int(cell):
        return f"{cell:,.0f}"
    return f"{cell:.4g}"


def clean(text: object) -> str:
    """Return a text without what neither XML nor a file name bears: control signs and lone surrogates.

    >>> clean("a\\x00b")
    'a\\ufffdb'
    """
    return _CONTROL.sub("\ufffd", str(text))


def _latex(text: object) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in clean(text).replace("\n", " "))


def _no_formula(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    text = clean(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text
