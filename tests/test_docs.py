"""The documentation holds: its code runs, its links lead somewhere, the tests and commands it names are there."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rewound
from rewound import allocation, criteria, lr_rules, metrics, techniques

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
GUIDES = [README, *sorted(DOCS.glob("*.md"))]
ADRS = sorted((DOCS / "adr").glob("*.md"))
PAGES = [*GUIDES, *ADRS, ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]
TABLES = (
    (criteria.CRITERIA, allocation.ALLOCATIONS, metrics.METRICS, lr_rules.LR_RULES)
    + (techniques.WEIGHTS, techniques.LR, techniques.NAMES)
)  # fmt: skip
PYTHON, NO_RUN = "python", "python no-run"


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the fence, its text, and the line where its text begins."""

    info: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    fence, start = None, 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if fence is None and line.lstrip().startswith("```"):
            fence, start = line.strip(), number + 1
        elif fence is not None and line.strip() == "```":
            text = textwrap.dedent("\n".join(lines[start:number])) + "\n"
            found.append(Block(fence.removeprefix("```").strip(), text, start + 1))
            fence = None
    assert fence is None, f"{page.name}: the block that begins in line {start} has no end"
    return found


def prose_of(page: Path) -> str:
    """Return the page without its fenced blocks and code spans."""
    text = re.sub(
        r"^[ ]*```.*?^[ ]*```[ ]*$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"`[^`\n]*`", "", text)


def python_of(page: Path) -> list[Block]:
    found = [block for block in blocks_of(page) if block.info.startswith("py")]
    for block in found:
        assert block.info in (PYTHON, NO_RUN), f"{page.name}:{block.line}: '{block.info}' would never be run"
    return found


def compiled(page: Path, block: Block):
    """Compile a block so that a traceback shows the page and its own line."""
    return compile("\n" * (block.line - 1) + block.text, str(page.relative_to(ROOT)), "exec")


# ---- code ----------------------------------------------------------------------------------------------


@pytest.fixture
def tables():
    """What a page enters into the package's tables is gone after it."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before):
        table.clear()
        table.update(entries)


def user_objects() -> dict[str, object]:
    """What a reader of the README has: a model, its optimizer and schedule, data, and two functions."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(32, 6)
    loader = [(x[i : i + 16], x[i : i + 16, :3].argmax(1)) for i in (0, 16)]

    def train_one_epoch(model, loader, optimizer, scheduler):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        scheduler.step()

    def evaluate(model):
        return sum((model(inputs).argmax(1) == targets).float().mean() for inputs, targets in loader) / len(
            loader
        )

    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 9], gamma=0.1),
        "loader": loader,
        "train_one_epoch": train_one_epoch,
        "evaluate": evaluate,
    }


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("tables")
def test_code_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run in order in one namespace; one that begins with '# name.py' is that file as well."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__", **(user_objects() if page == README else {})}
    for block in python_of(page):
        if file := re.match(r"# (\w+\.py)\n", block.text):
            (tmp_path / file[1]).write_text(block.text)
        code = compiled(page, block)
        if block.info == PYTHON:
            exec(code, namespace)


def test_the_readme_begins_with_a_complete_program():
    """Its first block needs nothing but rewound and what a reader has: no name comes from nowhere."""
    first = python_of(README)[0]
    assert first.info == PYTHON
    assert len(first.text.splitlines()) <= 15
    names = [node for node in ast.walk(ast.parse(first.text)) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    used = {node.id for node in names} - stored - set(dir(builtins))
    assert used <= {"rewound", *user_objects()}
    assert "import rewound" in first.text


def test_no_run_is_the_exception():
    blocks = [(page, block) for page in GUIDES for block in python_of(page)]
    run = [page.name for page, block in blocks if block.info == PYTHON]
    assert {"README.md", "method.md", "extend.md", "faq.md", "architecture.md"} <= set(run)
    assert [page.name for page, block in blocks if block.info == NO_RUN and page.name != "log.md"] == []


# ---- names ---------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings_of(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {anchor(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: "/".join(page.relative_to(ROOT).parts))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, part = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_relative_to(ROOT), f"{page.name}: {target} leaves the project"
        assert found.exists(), f"{page.name}: {target} is not there"
        if part:
            assert part in headings_of(found), f"{page.name}: {target} has no such heading"


def names_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("page", [*GUIDES, *ADRS], ids=lambda page: page.stem)
def test_named_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"(tests/[\w/]+\.py)::([\w:]+)", text):
        assert name in names_of(ROOT / file), f"{page.name}: there is no {file}::{name}"
    for file in re.findall(r"`((?:tests|benchmarks|docs)/[\w/.-]+\.(?:py|md))`", text):
        assert (ROOT / file).is_file(), f"{page.name}: there is no {file}"


def test_every_trap_of_this_release_has_a_test():
    held, _, untouched = (DOCS / "traps.md").read_text(encoding="utf-8").partition("## Not touched yet")
    rows = dict(re.findall(r"^\| (\d+) \|(.*)$", held, flags=re.MULTILINE))
    assert set(map(int, rows)) == {*range(1, 36)} - {32}
    assert all("::test_" in row or "::Test" in row for row in rows.values())
    left = set(map(int, re.findall(r"^\| (\d+) \|", untouched, flags=re.MULTILINE)))
    assert left == {32}


def test_the_rooms_are_those_of_the_source():
    """Every module stands in docs/architecture.md, and every module that stands there is one."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = next(block.text for block in blocks_of(DOCS / "architecture.md") if "src/rewound/" in block.text)
    source = ROOT / "src" / "rewound"
    real = {path.name for path in source.rglob("*.py")} - {"__init__.py"}
    shown = set(re.findall(r"\b(\w+\.py)\b", rooms)) - {"__init__.py"}
    assert shown == real
    assert all(f"{folder.name}/" in rooms for folder in source.rglob("*/") if list(folder.glob("*.py")))
    numbers = re.findall(
        r"^(\d+)\. ", page.partition("\n## Decisions")[2].partition("\n## ")[0], flags=re.MULTILINE
    )
    assert list(map(int, numbers)) == list(range(1, 13))


def test_the_table_of_techniques_is_that_of_the_code():
    rows = re.findall(
        r"^\| [^|]+ \| `([\w-]+)` \| ([^|]+) \| (\w+) \|", (DOCS / "method.md").read_text(), re.MULTILINE
    )
    assert {name for name, _, _ in rows} == set(techniques.NAMES)
    for name, t, state in rows:
        technique = rewound.parse_technique(name)
        assert technique.state_rule == state
        assert technique.length(100) == {"0.9 T": 90, "3/4 T": 75}.get(t, 100)


def test_commands_exist():
    from rewound.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in GUIDES:
        lines = [
            line
            for block in blocks_of(page)
            if block.info in ("", "console", "sh")
            for line in block.text.splitlines()
        ]
        spans = re.findall(r"`([^`\n]*)`", page.read_text(encoding="utf-8"))
        for words in (text.removeprefix("$ ").split() for text in [*lines, *spans]):
            if words[:1] == ["rewound"] and len(words) > 1 and not words[1].startswith("-"):
                assert words[1] in known, f"{page.name}: {' '.join(words)}"
            if words[:1] == ["make"] and len(words) > 1:
                assert words[1] in targets, f"{page.name}: {' '.join(words)}"


def test_decisions_are_short_and_listed():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [path.name[:4] for path in ADRS] == [f"{n:04d}" for n in range(1, len(ADRS) + 1)]
    for path in ADRS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 15, path.name
        assert text.startswith(f"# {path.name[:4]} ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE) == ["Decision", "Why", "Consequence"]
        assert f"(adr/{path.name})" in index, f"docs/index.md does not list {path.name}"


def test_pages_are_ascii():
    assert [page.name for page in DOCS.rglob("*.md") if not page.read_bytes().isascii()] == []


def test_the_version_is_the_newest_of_the_changelog():
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert rewound.__version__ == headings[0]


def test_the_picture_can_be_drawn_and_shows_the_techniques(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'tasks'")
    script = DOCS / "draw_method.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "method.svg")], check=True)
    panels = SimpleNamespace(there=DOCS / "images" / "method.svg", drawn=tmp_path / "method.svg")
    titles = re.findall(r'^    "[\w-]+(?::\d+ep)?": \("([^"]+)"', script.read_text(), flags=re.MULTILINE)
    assert len(titles) == 8
    for title in titles:  # matplotlib writes every text beside its outlines, as a comment
        assert f"<!-- {title} -->" in panels.there.read_text()
        assert f"<!-- {title} -->" in panels.drawn.read_text()
