"""The public names are exactly those that are importable, and importing costs nothing until one is used."""

import inspect
import subprocess
import sys

import pytest

import rewound


def test_all_names_are_importable_and_documented():
    for name in rewound.__all__:
        found = getattr(rewound, name)
        assert found.__module__.startswith("rewound."), name
        assert inspect.getdoc(found), name
    assert len(set(rewound.__all__)) == len(rewound.__all__)
    assert set(rewound.__all__) == set(rewound._WHERE)


@pytest.mark.parametrize("first", ["Run", "prune", "guard"])
def test_a_function_is_never_hidden_by_a_module_of_its_name(first):
    """Importing a submodule sets it as an attribute of the package, over a function of the same name."""
    code = f"import rewound; rewound.{first}; assert callable(rewound.prune) and callable(rewound.guard)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_does_not_import_torch():
    code = "import rewound, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="no attribute 'Pruner'; it offers Run, prune, guard"):
        rewound.Pruner  # noqa: B018


def test_promised_spellings():
    """docs/architecture.md, "the face": more keywords may join, none of these changes."""
    run = inspect.signature(rewound.Run.__init__).parameters
    promised = ["epochs", "technique", "rate", "until", "scheduler", "criterion", "pattern", "allocation", "scope",
                "evidence", "extras", "folder", "seed"]  # fmt: skip
    assert [p for p in run if p in promised] == promised
    assert all(run[p].kind is inspect.Parameter.KEYWORD_ONLY for p in promised)
    assert list(inspect.signature(rewound.prune).parameters)[:9] == [
        "model", "density", "criterion", "pattern", "allocation", "scope", "mask", "evidence", "example",
    ]  # fmt: skip
    assert list(inspect.signature(rewound.guard).parameters) == ["optimizer", "model", "mask"]
    for name in ("log", "mask", "density", "round", "plan", "result", "attach"):
        assert hasattr(rewound.Run, name) or name in ("mask", "round", "plan")
