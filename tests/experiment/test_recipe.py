import pytest
from pydantic import ValidationError

from rewound.experiment.recipe import Recipe, differences, make_recipe, read_recipe, to_toml


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"untill": 0.1}, r"unknown key 'untill' \(did you mean 'until'\?\)"),
        ({"scope": {"exlude": ["a"]}}, r"unknown key 'scope.exlude' \(did you mean 'scope.exclude'\?\)"),
        ({"zzz": 1}, r"unknown key 'zzz' \(known: name, task"),
        ({"seeds": "3"}, r"'seeds' must be a count .* \(got '3'\)"),
        ({"seeds": 0}, "'seeds' must be at least 1"),
        ({"seeds": [1, 1]}, "'seeds' names a seed twice"),
        ({"seeds": [True]}, "'seeds' must be a count"),
        ({"epochs": 0}, r"'epochs' should be greater than or equal to 1 \(got 0\)"),
        ({"epochs": "20"}, "'epochs' should be a valid integer"),
        ({"rate": 1.0}, r"'rate' must be in \[0, 1\)"),
        ({"until": 2}, "'until' must be a density"),
        ({"until": []}, "'until' must be a density"),
        ({"data_order": "frsh"}, "'data_order' should be 'rewind' or 'fresh'"),
        ({"allocation": 3}, "'allocation' must be a name"),
        ({"techniques": [1]}, "'techniques' must be a text or a list of texts"),
        ({"name": "../up"}, r"'name' may have letters, digits, blanks and _ \. - \(got '\.\./up'\)"),
    ],
)
def test_every_wrong_key_is_named_with_what_to_write_instead(data, says):
    with pytest.raises(ValueError, match=says):
        make_recipe(data)


def test_all_errors_come_in_one_message():
    with pytest.raises(ValueError, match=r"^mine.toml: .*'rate'.*; unknown key 'untill'"):
        make_recipe({"rate": 3, "untill": 1}, origin="mine.toml")


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().rate = 0.3


def test_overrides_are_toml_values_and_bare_words_are_texts():
    recipe = make_recipe(
        {"scope": {"exclude": ["fc.*"]}},
        [
            "until=20x",
            "seeds=[4, 5]",
            "techniques=[lr-rewinding, fine-tuning]",
            "task_options.model=mlp",
            "task_options.hidden=[8, 8]",
            "scope.embeddings=true",
            "rate = one-shot",
        ],
    )
    assert recipe.until == "20x"
    assert recipe.seeds == (4, 5)
    assert recipe.techniques == ("lr-rewinding", "fine-tuning")
    assert recipe.task_options == {"model": "mlp", "hidden": [8, 8]}
    assert recipe.scope.embeddings
    assert recipe.scope.exclude == ("fc.*",)
    assert recipe.rate == "one-shot"


@pytest.mark.parametrize("text", ["until", "=3", "a..b=1"])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(ValueError, match="--set wants key=value"):
        make_recipe({}, [text])


def test_an_override_cannot_reach_into_a_value():
    with pytest.raises(ValueError, match=r"'allocation' is no table here.*allocation='\{ fc = 0\.3 \}'"):
        make_recipe({"allocation": "erk"}, ["allocation.fc=0.3"])
    assert make_recipe({"allocation": "erk"}, ["allocation={ fc = 0.3 }"]).allocation == {"fc": 0.3}


def test_toml_reads_back_to_an_equal_recipe(tmp_path):
    recipe = Recipe(
        name="all of it",
        task='a "quoted" task',
        task_options={"lr": 1e-5, "deep": {"a b": [True, "x"]}},
        techniques=("lr-rewinding:3ep,fresh",),
        seeds=(3,),
        epochs=7,
        rate="one-shot",
        until=("20x", 0.5),
        allocation={"0.weight": 0.25},
        scope={"exclude": ("fc.*",), "embeddings": True},
        data_order="fresh",
        folder="here",
    )
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe))
    assert read_recipe(path) == recipe


def test_a_recipe_is_called_after_its_file_and_goes_to_a_folder_of_that_name(tmp_path):
    path = tmp_path / "two words.toml"
    path.write_text("seeds = 1")
    recipe = read_recipe(path)
    assert (recipe.name, recipe.place.as_posix()) == ("two-words", "runs/two-words")


def test_a_task_file_is_found_beside_its_recipe(tmp_path):
    (tmp_path / "mine.py").write_text("")
    path = tmp_path / "recipe.toml"
    path.write_text('task = "mine.py:Mine"')
    assert read_recipe(path).task == f"{tmp_path / 'mine.py'}:Mine"


def test_a_missing_or_broken_file_is_named(tmp_path):
    (tmp_path / "other.toml").write_text("seeds = ")
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*nope\.toml'; there is .*other\.toml"):
        read_recipe(tmp_path / "nope.toml")
    with pytest.raises(ValueError, match=r"other\.toml is not valid TOML"):
        read_recipe(tmp_path / "other.toml")


def test_more_seeds_or_techniques_are_no_difference_another_rate_is():
    old = Recipe(seeds=(0,), techniques=("fine-tuning",))
    assert differences(old, Recipe(seeds=(0, 1), workers=1)) == []
    assert differences(old, Recipe(rate=0.3)) == ["rate: 0.2 there, 0.3 here"]
