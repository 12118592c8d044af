import pytest

from rewound.experiment.controls import CONTROLS, control
from rewound.experiment.grid import grid_toml, make_grid
from rewound.experiment.recipe import tomllib
from rewound.experiment.series import series_of
from rewound.experiment.verdict import control_values

CELL = {
    "technique": "weight-rewinding:3ep", "rate": 0.5, "until": 0.25, "criterion": "magnitude",
    "allocation": "lamp", "pattern": "weight", "seed": 1, "epochs": 4,
}  # fmt: skip


def _run(cell):
    """Run a cell on the digits and return it as a run of a study."""
    from rewound.tasks import drive, load_task

    cell = {**CELL, **cell}
    result, test = drive(
        load_task("digits"), seed=cell["seed"], epochs=cell["epochs"], technique=cell["technique"],
        rate=cell["rate"], until=cell["until"], criterion=cell["criterion"], allocation=cell["allocation"],
    )  # fmt: skip
    return {"cell": cell, "status": "finished", "test": test, **result.to_dict()}


@pytest.fixture(scope="module")
def runs():
    own = _run(CELL)
    return {"own": own} | {name: _run(control(name, CELL, epochs=4, rounds=2)) for name in CONTROLS}


def test_every_control_trains_for_as_many_epochs_as_its_run(runs):
    assert {name: run["search_cost"]["epochs"] for name, run in runs.items()} == dict.fromkeys(
        runs, 4 + 2 * 3
    )
    assert len({run["search_cost"]["flops"] for run in runs.values()}) == 1


def test_controls_of_the_mask_are_as_sparse_and_those_of_training_prune_nothing(runs):
    for name, run in runs.items():
        assert run["rounds"][-1]["density"] == pytest.approx(
            1.0 if name in ("dense", "cyclic") else 0.25, abs=1e-4
        ), name
    assert len(runs["dense"]["rounds"]) == 1 and len(runs["cyclic"]["rounds"]) == 3
    layers = runs["layerwise-random"]["rounds"][-1]["densities"].values()
    assert max(layers) - min(layers) < 0.01 < max(runs["own"]["rounds"][-1]["densities"].values()) - 0.26


def test_a_random_mask_is_worse_and_a_study_knows_what_prunes_nothing(runs):
    own, random = (runs[name]["rounds"][-1]["before"]["accuracy"] for name in ("own", "random-mask"))
    assert own > random
    study = {"metric": {"name": "accuracy", "higher_is_better": True}, "runs": list(runs.values())}
    found = {one.label: one for one in series_of(study)}
    controls = [one for one in found.values() if one.is_control]
    assert len(controls) == 2
    assert all(0.5 < control_values(one, "accuracy")[1] <= 1 for one in controls)


def test_one_line_of_a_grid_adds_them_and_shared_ones_once():
    grid = {
        "techniques": ["fine-tuning", "lr-rewinding", "gradual"],
        "controls": ["dense", "cyclic", "random-mask"],
    }
    data = {"task": "digits", "epochs": 4, "seeds": 2, "rate": 0.5, "until": 0.25, "grid": grid}
    runs = list(make_grid(data).runs.values())
    told = [(r.techniques[0], r.rate, r.epochs, r.criterion) for r in runs if r.seeds == (0,)]
    assert told == [
        ("fine-tuning", 0.5, 4, "magnitude"),
        ("lr-rewinding", 0, 12, "magnitude"),  # dense, for both techniques
        ("lr-rewinding:4ep", 0, 4, "magnitude"),  # cyclic
        ("fine-tuning", 0.5, 4, "random"),
        ("lr-rewinding", 0.5, 4, "magnitude"),
        ("lr-rewinding", 0.5, 4, "random"),
        ("gradual", 0.5, 4, "magnitude"),
        ("lr-rewinding", 0, 4, "magnitude"),  # the dense control of one training of four epochs
        ("gradual", 0.5, 4, "random"),
    ]
    assert len(runs) == 2 * len(told)
    again = tomllib.loads(grid_toml(make_grid(data)))
    assert list(make_grid(again).runs) == list(make_grid(data).runs)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epochs": None}, "give 'epochs'"),
        ({"until": "accuracy drops 0.1"}, "controls train for as many epochs"),
        ({"grid": {"controls": ["densest"]}}, "did you mean 'dense'"),
        ({"grid": {"controls": 3}}, "must be a list of names"),
    ],
)
def test_a_line_that_cannot_be_is_refused(changed, says):
    data = {"task": "digits", "epochs": 4, "until": 0.25, "grid": {"controls": "dense"}}
    data = {key: value for key, value in {**data, **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=says):
        make_grid(data)


def test_what_there_is_no_control_of_is_refused():
    with pytest.raises(ValueError, match="did you mean 'random-mask'"):
        control("random-masks", CELL, epochs=4, rounds=2)
    gradual = {**CELL, "technique": "gradual"}
    with pytest.raises(ValueError, match="give it 'until' a density"):
        control("budgeted", {**CELL, "until": "2 rounds"}, epochs=4, rounds=2)
    with pytest.raises(ValueError, match="one training"):
        control("cyclic", gradual, epochs=4, rounds=2)
    assert control("dense", gradual, epochs=4, rounds=3)["epochs"] == 4
