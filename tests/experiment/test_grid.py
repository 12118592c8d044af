import pytest

from rewound.experiment.grid import Grid, grid_toml, labels, make_grid, read_grid
from rewound.experiment.recipe import Recipe, make_recipe
from rewound.experiment.toml_text import tomllib


def runs_of(data, *overrides):
    return list(make_grid(data, overrides).runs.values())


def test_a_recipe_without_a_grid_stays_a_recipe(tmp_path):
    path = tmp_path / "plain.toml"
    path.write_text("seeds = 1\nrate = 0.3")
    assert read_grid(path) == Recipe(name="plain", seeds=1, rate=0.3)


def test_lists_are_gone_through_in_every_combination_seed_by_seed():
    runs = runs_of(
        {
            "seeds": 2,
            "techniques": ["lr-rewinding"],
            "grid": {"rate": [0.2, "one-shot"], "until": [0.5, ["10x", "3 rounds"]]},
        }
    )
    assert [(run.seeds[0], run.rate, run.until) for run in runs[:4]] == [
        (0, 0.2, 0.5),
        (0, 0.2, ("10x", "3 rounds")),
        (0, "one-shot", 0.5),
        (0, "one-shot", ("10x", "3 rounds")),
    ]
    assert [run.seeds for run in runs] == [(0,)] * 4 + [(1,)] * 4


def test_tables_inside_are_gone_through_key_by_key_and_keep_what_the_recipe_says():
    data = {
        "techniques": ["lr-rewinding"],
        "seeds": 1,
        "task_options": {"lr": 0.1},
        "grid": {"task_options": {"hidden": [[8], [8, 8]]}, "scope": {"exclude": [["a.*"], ["b.*"]]}},
    }
    found = [(run.task_options, run.scope.exclude) for run in runs_of(data)]
    assert found == [
        ({"lr": 0.1, "hidden": hidden}, (scope,)) for hidden in ([8], [8, 8]) for scope in ("a.*", "b.*")
    ]


def test_several_tables_are_joined_and_a_run_of_both_is_one():
    first = {"techniques": ["lr-rewinding", "fine-tuning"], "t": [2, 4]}
    second = {"techniques": "lr-rewinding:4ep", "seeds": [0, 5], "rate": 0.2}
    runs = runs_of({"seeds": 1, "grid": [first, second]})
    assert [(run.techniques[0], run.seeds[0]) for run in runs] == [
        ("lr-rewinding:2ep", 0),
        ("fine-tuning:2ep", 0),
        ("lr-rewinding:4ep", 0),
        ("fine-tuning:4ep", 0),
        ("lr-rewinding:4ep", 5),
    ]


def test_overrides_reach_into_the_grid_and_around_it():
    data = {"techniques": ["lr-rewinding"], "grid": {"rate": [0.2]}}
    assert [run.rate for run in runs_of(data, "grid.rate=[0.3, 0.4]", "seeds=1")] == [0.3, 0.4]


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"rat": [1]}, r"unknown key 'grid\.rat': did you mean 'rate'"),
        ({"rate": [0.2, 1.5]}, r"'grid\.rate' must be in \[0, 1\).*got 1\.5"),
        ([{"rate": [0.2]}, {"until": [2]}], r"'grid\[1\]\.until' must be a density.*got 2"),
        ({"scope": {"exlude": ["a"]}}, r"unknown key 'grid\.scope\.exlude' \(did you mean 'grid\.scope\.exclude'"),
        ({"epochs": []}, r"'grid\.epochs' is an empty list"),
        ({"folder": ["a", "b"]}, r"'grid\.folder' is of the whole grid"),
        ({"t": ["4ep"]}, r"'grid\.t' must be whole numbers of epochs \(got '4ep'\)"),
        ({"t": [3], "techniques": ["fine-tuning:2ep"]}, r"'grid\.t' is given to every technique, and 'fine-tuning:2ep'"),
        ({"seeds": [1, 1]}, r"'grid\.seeds' names a seed twice"),
        ({"techniques": ["fine-tunin"]}, "^mine.toml: unknown technique 'fine-tunin': did you mean 'fine-tuning'"),
        ({"until": ["10 raunds"]}, "^mine.toml: cannot read 'until' = '10 raunds'"),
        (3, r"'grid' must be a table, \[grid\], or several, \[\[grid\]\] \(got 3\)"),
        ([], r"'grid' must be a table"),
    ],
)  # fmt: skip
def test_errors_name_the_dotted_path(grid, says):
    with pytest.raises(ValueError, match=says):
        make_grid({"grid": grid}, origin="mine.toml")


def test_where_one_recipe_is_wanted_a_grid_is_refused():
    with pytest.raises(ValueError, match="'grid' makes this a grid of recipes"):
        make_recipe({"grid": {"rate": [0.2]}})


def test_toml_reads_back_to_an_equal_grid():
    data = {
        "name": "both",
        "scope": {"exclude": ["fc.*"]},
        "grid": [
            {"task_options": {"hidden": [[8], [8, 8]]}, "rate": ["one-shot", 0.2]},
            {"seeds": 1, "t": [3]},
        ],
    }
    grid = make_grid(data)
    assert isinstance(grid, Grid)
    again = make_grid(tomllib.loads(grid_toml(grid)))
    assert again == grid
    assert list(again.runs) == list(grid.runs)


def test_a_label_says_what_is_not_the_same_in_all():
    grid = {"until": [0.25, "3 rounds"], "task_options": {"lr": [0.1]}}
    runs = runs_of({"seeds": 1, "techniques": ["lr-rewinding"], "grid": grid})
    assert labels(runs) == ["lr-rewinding, until 0.25, seed 0", "lr-rewinding, until 3 rounds, seed 0"]
