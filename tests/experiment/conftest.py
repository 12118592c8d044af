"""Plain results dicts, as ``results.json`` holds them, made of nothing but arithmetic."""

import io
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def make_results():
    """Return a function: technique -> accuracy lost at the last density, and so on, to a results dict."""

    def make(lost=None, seeds=3, rounds=11, noise=0.004, metric="accuracy", higher_is_better=True):
        lost = {"fine-tuning": 0.2, "weight-rewinding": 0.1, "lr-rewinding": 0.02} if lost is None else lost
        chance, arms = random.Random(0), []
        for technique, loss in lost.items():
            for seed in range(seeds):
                done = []
                for k in range(rounds):
                    draw = (
                        random.Random(seed) if k == 0 else chance
                    )  # the original run is the technique's no business
                    value = 0.97 - loss * (k / (rounds - 1)) ** 4 + draw.uniform(-noise, noise)
                    done.append(
                        {
                            "index": k,
                            "density": 0.8**k,
                            "metrics": {metric: value},
                            "before": {},
                            "epochs": 20,
                        }
                    )
                arms.append(
                    {
                        "technique": technique,
                        "seed": seed,
                        "status": "finished",
                        "error": None,
                        "folder": f"arms/{technique}/seed-{seed}",
                        "rounds": done,
                        "search_cost": {"epochs": 20 * rounds, "flops": 3.2e11},
                        "test": {metric: value - 0.01},
                    }
                )
        return {
            "format": 1,
            "name": "toy",
            "task": {"name": "toy"},
            "metric": {"name": metric, "higher_is_better": higher_is_better},
            "arms": arms,
        }

    return make


@pytest.fixture
def make_control(make_results):
    """Return a function to the results of a dense control: three rounds at density 1, better from 0.7 to 0.9."""

    def make():
        results = make_results({"lr-rewinding": 0.0}, rounds=3, noise=0.0)
        for arm in results["arms"]:
            for done, value in zip(arm["rounds"], (0.7, 0.8, 0.9)):
                done.update(density=1.0, metrics={"accuracy": value})
        return results

    return make


@pytest.fixture(scope="session")
def finished_experiment(tmp_path_factory):
    """Return the folder of a small finished experiment; copy it before changing anything."""
    from rewound.experiment.recipe import make_recipe
    from rewound.experiment.runner import run_experiment
    from rewound.experiment.screen import progress

    place = tmp_path_factory.mktemp("experiment") / "tiny"
    recipe = make_recipe(
        {
            "techniques": ["fine-tuning", "weight-rewinding"],
            "seeds": 1,
            "epochs": 3,
            "until": "2 rounds",
            "workers": 1,
            "folder": str(place),
        }
    )
    run_experiment(recipe, lambda *shown: progress(*shown, stream=io.StringIO()))
    return place


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory):
    """Return the folder of a small finished grid, two techniques by two rates; copy it before changing anything."""
    from grids import run

    place = tmp_path_factory.mktemp("grid") / "small"
    run(place, seeds=1)
    return place


@pytest.fixture
def make_run():
    """Return a function: density -> accuracy, and what tells the run's cell, to a run of a study."""

    def make(points, technique="lr-rewinding", seed=0, rate=0.2, t=20, test=None, extra=(), **cell):
        dense = [
            {"index": k, "density": d, "metrics": {"accuracy": v}} for k, (d, v) in enumerate(points.items())
        ]
        after = [
            {"index": len(dense) + k, "density": 1.0, "metrics": {"accuracy": v}} for k, v in enumerate(extra)
        ]
        rounds = [{**done, "epochs": t if done["index"] else 20} for done in dense + after]
        return {
            "key": "none",
            "cell": {"technique": technique, "rate": rate, "seed": seed, **cell},
            "status": "finished",
            "error": None,
            "rounds": rounds,
            "test": None if test is None else {"accuracy": test},
            "search_cost": {"epochs": sum(done["epochs"] for done in rounds)},
        }

    return make


@pytest.fixture
def make_study(make_run):
    """Return a function: technique -> seed -> accuracy at density 0.1, to a study."""

    def make(values):
        runs = [
            make_run({1.0: 0.95, 0.1: value}, technique=name, seed=seed)
            for name, by_seed in values.items()
            for seed, value in by_seed.items()
        ]
        metric = {"name": "accuracy", "higher_is_better": True}
        return {"name": "toy", "metric": metric, "task": {"name": "toy"}, "runs": runs}

    return make
