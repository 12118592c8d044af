"""A run's key is its name for good: pinned here, so that no later version forgets what was computed."""

import pytest

from rewound.experiment.keys import canonical, cell_of, key_of, original_key
from rewound.experiment.recipe import Recipe


def one(**keys):
    return Recipe(**{"techniques": "lr-rewinding", "seeds": [0], **keys})


@pytest.mark.parametrize(
    ("keys", "golden"),
    [
        ({}, "429beb2ffc268c37"),
        ({"seeds": [7], "techniques": "weight-rewinding:9ep"}, "8a8c7eec2d2277b5"),
        ({"rate": "one-shot", "until": ("20x", "accuracy drops 0.01"), "epochs": 12}, "5144ee79ade6ba22"),
        ({"pattern": "channel", "multiple": 8, "floor": 0.1, "allow": "exact"}, "866ec5e694546ee9"),
        ({"task_options": {"hidden": [8, 8], "lr": 0.1}, "scope": {"exclude": ("4.*",)}}, "8c5137961bcf4751"),
        ({"allocation": {"0.weight": 0.25}, "data_order": "fresh", "threads": 2}, "adb737b8ab48b3a8"),
    ],
)
def test_golden_keys(keys, golden):
    assert key_of(canonical(one(**keys))) == golden


def test_other_spellings_and_what_shapes_no_result_leave_the_key():
    key = key_of(canonical(one(until=0.05, techniques="fine-tuning:4ep")))
    for same in (
        {"until": "20x", "techniques": "fine-tuning: 4 epochs"},
        {"techniques": "finalxlast:4ep"},
        {"techniques": "fine-tuning:4ep", "name": "other", "workers": 9, "folder": "elsewhere"},
        {"techniques": "fine-tuning:4ep", "multiple": 1, "allow": "exact after fold", "task_options": {}},
    ):
        assert key_of(canonical(one(**same))) == key


@pytest.mark.parametrize(
    ("apart", "shares"),
    [
        ({"rate": 0.3}, True),
        ({"until": 0.1}, True),
        ({"techniques": "fine-tuning:2ep"}, True),
        ({"pattern": "channel"}, True),
        ({"criterion": "random"}, True),
        ({"allocation": "erk"}, True),
        ({"scope": {"exclude": ("a",)}}, True),
        ({"seeds": [1]}, False),
        ({"epochs": 3}, False),
        ({"data_order": "fresh"}, False),
        ({"threads": 2}, False),
        ({"task": "diabetes"}, False),
        ({"task_options": {"lr": 0.5}}, False),
    ],
)
def test_every_key_that_shapes_a_result_is_in_and_those_of_the_training_alone_part_originals(apart, shares):
    here, there = canonical(one()), canonical(one(**apart))
    assert key_of(here) != key_of(there)
    assert (original_key(here) == original_key(there)) == shares


@pytest.mark.parametrize("keys", [{"criterion": "movement"}, {"techniques": "gradual"}])
def test_what_changes_the_first_training_shares_none(keys):
    assert original_key(canonical(one(**keys))) is None


def test_the_file_of_a_task_counts_by_content_and_not_by_place(tmp_path):
    places = [tmp_path / name / "mine.py" for name in ("a", "b")]
    for place in places:
        place.parent.mkdir()
        place.write_text("first")
    keys = [key_of(canonical(one(task=f"{place}:Mine"))) for place in places]
    assert keys[0] == keys[1]
    places[0].write_text("second")
    assert key_of(canonical(one(task=f"{places[0]}:Mine"))) != keys[1]


def test_a_cell_says_every_key():
    cell = cell_of(one(until=("20x", "accuracy drops 0.01")))
    assert cell["until"] == "density 0.05 or accuracy drops 0.01"
    left_out = {"name", "techniques", "seeds", "workers", "folder"}
    assert set(cell) == set(Recipe.model_fields) - left_out | {"technique", "seed"}
