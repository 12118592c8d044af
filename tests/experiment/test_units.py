"""Recipes that prune units: run, shown, gone on with and verified like all others."""

import json

import pytest
from typer.testing import CliRunner

from rewound.cli import app
from rewound.experiment.picture import draw
from rewound.experiment.recipe import make_recipe, to_toml, tomllib
from rewound.experiment.statistics import common_densities, in_units, last_densities, last_parameters
from rewound.experiment.store import key_of
from rewound.experiment.table import as_text, make_table

TINY = [
    "task=digits-resnet", "task_options={depth=8, width=4}", "epochs=2", "seeds=[0]", "workers=1", "until=0.5",
    "techniques=[fine-tuning, lr-rewinding:1ep]", "pattern=channel", "folder=units",
]  # fmt: skip


def rewound(*arguments):
    return CliRunner().invoke(app, list(arguments))


def options(*more):
    return [text for key in (*TINY, *more) for text in ("--set", key)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_recipe_of_channels_runs_and_is_verified(tmp_path):
    plan = rewound("plan", *options())
    assert plan.exit_code == 0, plan.output
    assert (
        "channels" not in plan.stdout
    )  # the pattern's word is units: channels of a residual sum leave together
    assert "units, made of" in plan.stdout
    ran = rewound("run", *options(), "--json")
    assert ran.exit_code == 0, ran.output
    results = json.loads(ran.stdout)
    for arm in results["arms"]:
        assert arm["rounds"][0]["unit_density"] == 1
        assert arm["rounds"][-1]["unit_density"] == pytest.approx(0.5, abs=0.02)
        assert arm["rounds"][-1]["density"] < 0.5
    assert in_units(results)
    assert common_densities(results)[-1] == pytest.approx(
        0.5, abs=0.02
    )  # though the weights of the arms differ
    assert len(common_densities(results)) == len(results["arms"][0]["rounds"])
    table = as_text(make_table(results))
    assert "of parameters" in table
    assert "count units" in table
    ends, parameters = last_densities(results), last_parameters(results)
    assert all(parameters[name].median < ends[name].median for name in ends)
    assert draw(results, tmp_path / "units.svg").is_file()
    verified = rewound("verify", "units")
    assert verified.exit_code == 0, verified.output
    again = rewound("run", *options(), "--json")
    assert json.loads(again.stdout)["arms"] == results["arms"]


def test_widths_of_a_recipe_are_multiples():
    ran = rewound("run", *options("multiple=2", "techniques=[lr-rewinding:1ep]"), "--json")
    assert ran.exit_code == 0, ran.output
    (arm,) = json.loads(ran.stdout)["arms"]
    assert all(kept % 2 == 0 for done in arm["rounds"] for kept, _ in done["units"].values())


def test_n_of_m_needs_no_until(tmp_path):
    recipe = {"task": "digits", "pattern": "2:4", "epochs": 1, "seeds": [0], "techniques": ["lr-rewinding"]}
    (tmp_path / "nm.toml").write_text(to_toml(make_recipe(recipe)))
    ran = rewound("run", "nm.toml", "--json")
    assert ran.exit_code == 0, ran.output
    (arm,) = json.loads(ran.stdout)["arms"]
    assert [done["density"] for done in arm["rounds"]] == [1.0, 0.5]
    wrong = rewound("run", "nm.toml", "--set", "until=0.1", "--folder", "wrong")
    assert wrong.exit_code == 2
    assert "'until' can only be 0.5 or None" in wrong.output


def test_patterns_in_recipes_are_read_back_and_keep_old_keys():
    recipe = make_recipe(
        {"task": "digits", "pattern": ["channel", "hidden unit"], "multiple": 8, "floor": 0.1}
    )
    assert recipe.pattern == ("channel", "hidden unit")
    assert make_recipe(tomllib.loads(to_toml(recipe))) == recipe
    old = {"task": "digits", "until": 0.1}
    assert key_of(make_recipe(old)) == key_of(
        make_recipe({**old, "multiple": 1, "allow": "exact after fold"})
    )
    assert key_of(make_recipe(old)) != key_of(make_recipe({**old, "multiple": 8}))
    with pytest.raises(ValueError, match="'pattern' must be a text or a list of texts"):
        make_recipe({"task": "digits", "pattern": 3})


def test_mistakes_are_told_before_anything_is_trained():
    for change, message in [
        ("pattern=chanel", "unknown pattern 'chanel': did you mean 'channel'?"),
        ("pattern=head", "nothing can be pruned by pattern 'head'"),
        ("multiple=0", "'multiple'"),
        ("allow=perhaps", "unknown certificate 'perhaps'"),
    ]:
        ran = rewound("run", *options(change))
        assert ran.exit_code == 2, ran.output
        assert message in ran.output
