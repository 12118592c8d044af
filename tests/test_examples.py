"""Every file in examples/ runs as it stands, quickly, and prints its table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
ADAPTERS = {"huggingface_trainer.py": "prepare(", "lightning_trainer.py": "RewindCallback("}


def test_there_are_examples():
    assert {"plain_loop.py", "huggingface_trainer.py", "distributed.py"} <= {path.name for path in EXAMPLES}
    readme = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme for path in EXAMPLES)


def test_the_readme_says_which_extra_an_example_needs():
    extras = {"sklearn": "tasks", "accelerate": "huggingface", "transformers": "huggingface"}
    extras |= {"lightning": "lightning"}
    rows = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8").splitlines()
    for path in EXAMPLES:
        imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        (row,) = [row for row in rows if row.startswith(f"| `{path.name}`")]
        assert set(re.findall(r"rewound\[(\w+)\]", row)) == {extras[m] for m in imported if m in extras}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_shows_the_three_lines_and_runs(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    shown = (ADAPTERS[path.name],) if path.name in ADAPTERS else ("rewound.Run(", " in run:", "run.log(")
    assert all(line in source for line in shown)
    environment = {**os.environ, "REWOUND_QUICK": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "search cost" in done.stdout
    assert "Warning" not in done.stderr.replace("UserWarning: 'pin_memory'", "")
