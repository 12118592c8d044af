"""The recipes by figure: each is read, is what it says, and can be planned where its data are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewound.experiment.grid import Grid, read_grid
from rewound.experiment.recipe import Recipe

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.toml"))


def name(path):
    return str(path.relative_to(ROOT))


def runs_of(path):
    found = read_grid(path)
    return list(found.runs.values()) if isinstance(found, Grid) else [found]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_is_read_and_its_techniques_fit_its_length(path):
    from rewound.techniques import parse_technique

    for recipe in runs_of(path):
        assert isinstance(recipe, Recipe)
        for text in recipe.techniques:
            assert 0 <= parse_technique(text).length(recipe.epochs) <= recipe.epochs


def test_the_table_of_recipes_names_them_all():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    told, last = set(), None
    for text in re.findall(r"`([^`]+)`", page):
        if text.endswith(".toml"):
            last = text if "/" in text else str(Path(last).parent / text)
            told.add(last)
        elif text.startswith("-"):  # "-56": as the one before, with another ending
            told.add(re.sub(r"-[0-9a-z]+\.toml$", f"{text}.toml", last))
    assert told == {name(path) for path in RECIPES}


def test_the_papers_steps_of_t_and_densities():
    cifar = {r.techniques[0] for r in runs_of(ROOT / "renda2020/iterative-resnet-56.toml")}
    assert {int(t.split(":")[1][:-2]) for t in cifar} == {10, 30, 50, 70, 90, 110, 130, 150, 170, 182}
    assert len(runs_of(ROOT / "renda2020/one-shot-resnet-20.toml")) == 5 * 10 * 10 * 3
    densities = {r.until for r in runs_of(ROOT / "renda2020/one-shot-resnet-50.toml")}
    assert sorted(densities) == pytest.approx(sorted(0.8**k for k in range(1, 11)))


@pytest.mark.parametrize("path", sorted(ROOT.glob("renda2020/structured-*.toml")), ids=name)
def test_structured_recipes_have_the_rates_of_li_2017(path):
    from rewound.papers.li2017 import li2017
    from rewound.tasks.models.resnet import cifar_resnet, imagenet_resnet

    network = path.stem.removeprefix("structured-")
    depth, letter = network.split("-")[1:]
    model = imagenet_resnet(34) if depth == "34" else cifar_resnet(int(depth))
    wanted = [li2017(f"ResNet-{depth}-{letter.upper()}", model, times=i) for i in range(1, 6)]
    found = {str(r.allocation): r.allocation for r in runs_of(path)}.values()
    assert len(found) == 5
    for one, other in zip(found, wanted):
        assert one == pytest.approx(other, rel=1e-5)


def test_controls_of_the_small_figure_train_for_as_many_epochs_as_what_they_control():
    from rewound.plan import kept_by_round, parse_until
    from rewound.techniques import parse_technique

    totals: dict[str, set[int]] = {}
    for path in ("small/lenet-300-100.toml", "small/resnet-narrow.toml"):
        for recipe in runs_of(ROOT / path):
            (text,) = recipe.techniques
            technique = parse_technique(text)
            rounds = len(kept_by_round(10**5, recipe.rate, parse_until(recipe.until)))
            total = recipe.epochs + (0 if technique.goes_on else rounds * technique.length(recipe.epochs))
            totals.setdefault(path, set()).add(total)
    assert totals == {"small/lenet-300-100.toml": {100, 91, 10}, "small/resnet-narrow.toml": {42, 36}}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_plans_where_its_data_are(path):
    from rewound.experiment.arms import run_options, task_of
    from rewound.run import Run
    from rewound.tasks import example_of

    seen = set()
    for recipe in runs_of(path):
        what = (
            recipe.model_dump_json(include={"task_options", "rate", "pattern", "criterion"}),
            recipe.techniques[0][:9],
        )
        if what in seen:  # one of each kind: planning builds a model
            continue
        seen.add(what)
        try:
            task = task_of(recipe)
        except FileNotFoundError as error:
            pytest.skip(str(error).splitlines()[0][:100])
        model = task.model(0)
        options = run_options(recipe, task, recipe.techniques[0], 0)
        run = Run(model, task.optimizer(model), epochs=recipe.epochs, example=example_of(task, 0), **options)
        assert run.plan.total_epochs >= recipe.epochs
