"""Studies made of nothing but arithmetic, and a browser where there is one."""

import json
import random
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def made_round(k, epochs, value, density, tensors=3):
    return {
        "index": k,
        "density": density,
        "density_total": density,
        "metrics": {"accuracy": value, "loss": 1 - value},
        "before": {},
        "epochs": epochs,
        "steps": 10 * epochs,
        "flops": 1e9 * epochs,
        "sparse_flops": 1e9 * epochs * density,
        "densities": {f"layer{i}.weight": min(1.0, density * (0.7 + i / 4)) for i in range(tensors)},
        "multiply_adds": [int(1e6 * density), 10**6],
        "collapsed": [],
        "log": [{"loss": 1 - value + 0.1 / (epoch + 1)} for epoch in range(epochs)],
    }


@pytest.fixture
def make_study():
    """Return a function: techniques -> accuracy lost at the last density, and so on, to a study."""

    def make(lost=None, ts=(None,), seeds=3, rounds=6, epochs=20, name="toy", task="toy", tensors=3):
        lost = {"fine-tuning": 0.2, "lr-rewinding": 0.02} if lost is None else lost
        runs = []
        for technique, loss in lost.items():
            for t in ts:
                text = technique if t is None else f"{technique}:{t}ep"
                for seed in range(seeds):
                    chance, same = random.Random(f"{text} {seed}"), random.Random(seed)
                    done = []
                    for k in range(rounds):
                        noise = (same if k == 0 else chance).uniform(-0.004, 0.004)
                        value = 0.97 - loss * (k / (rounds - 1)) ** 2 + noise
                        done.append(made_round(k, epochs if k == 0 or not t else t, value, 0.8**k, tensors))
                    cost = {
                        key: sum(r[key] for r in done) for key in ("epochs", "steps", "flops", "sparse_flops")
                    }
                    runs.append(
                        {
                            "key": f"{len(runs):016x}",
                            "cell": {"task": task, "technique": text, "rate": 0.2, "seed": seed},
                            "label": f"{text}, seed {seed}",
                            "folder": None,
                            "status": "finished",
                            "error": None,
                            "rounds": done,
                            "search_cost": cost,
                            "test": {"accuracy": value - 0.01},
                            "seconds": 12.5,
                        }
                    )
        return {
            "name": name,
            "folder": ".",
            "task": {"name": task},
            "metric": {"name": "accuracy", "higher_is_better": True},
            "runs": runs,
            "dense": {},
            "recipe": 'task = "toy"',
            "command": "rewound run toy",
            "versions": {"torch": "2.13"},
            "machine": {"cpu": "one"},
            "data": {"fingerprint": "abc"},
        }

    return make


@pytest.fixture
def write_grid():
    """Return a function: folder, study -> the folder, as a grid that has come so far leaves it."""

    def write(place, study):
        (place / "runs").mkdir(parents=True, exist_ok=True)
        about = {key: study[key] for key in ("name", "task", "metric", "command", "versions", "machine")}
        asked = {
            run["key"]: {"label": run["label"], "cell": run["cell"], "original": None}
            for run in study["runs"]
        }
        (place / "recipe.toml").write_text(study["recipe"])
        (place / "grid.json").write_text(json.dumps({**about, "runs": asked}))
        for run in study["runs"]:
            if run["status"] == "finished":
                (place / "runs" / f"{run['key']}.json").write_text(json.dumps(run))
        return place

    return write


@pytest.fixture
def overlay_file(tmp_path):
    """A CSV of published points of two networks."""
    head = (
        "network,prune,iterative,density,method,retrain_epochs,test_median,val_median,base_mean,delta_median"
    )
    rows = [
        f"{network},Unstructured,1,{0.8**k},{method},{t},{91 - k * worse - t / 100},{90 + t / 100},91.5,{-k * worse}"
        for network in ("resnet20", "resnet56")
        for method, worse in (("FT", 1.0), ("LRR", 0.2))
        for t in (10, 182)
        for k in range(1, 8)
    ]
    path = tmp_path / "published.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright; skipped where either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install 'rewound[browser]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
