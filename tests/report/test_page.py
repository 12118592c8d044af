"""The page as text: what is on it, what is left out, and that nothing of an experiment's gets out of its quotes."""

import html
import json
import re
import time
from html.parser import HTMLParser

import pytest
import torch
from typer.testing import CliRunner

import rewound
from rewound.cli import app
from rewound.report.figures.losses import losses_section
from rewound.report.figures.rates import rates_section
from rewound.report.making import make_page, read_bench
from rewound.report.overlay import read_overlay
from rewound.report.view import View

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)> $x^2$ \\input{x} \x07"
BENCH = {
    "name": "net",
    "zeros": 0.9,
    "threads": 1,
    "verdict": "90 % of the weights are zero. Torch is not faster for it (1.00x against the same network dense).",
    "machine": {"cpu": "one"},
    "rows": [
        {
            "runtime": runtime,
            "network": network,
            "batch": 1,
            "right": True,
            "wall_seconds": {"median": s, "low": s, "high": s, "samples": [s, s]},
            "cpu_seconds": {"median": s, "low": s, "high": s, "samples": [s, s]},
        }
        for runtime, network, s in (
            ("torch", "model", 0.004),
            ("engine", "model", 0.001),
            ("torch", "dense twin", 0.004),
        )
    ],
}


class Page(HTMLParser):
    """Elements, links and identifiers of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append((tag, name))


def titles(page):
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", page)


def test_every_section_is_there(make_study, overlay_file):
    page = make_page(make_study(ts=(5, 10, 20)), overlays=read_overlay(overlay_file), benches=[BENCH])
    assert titles(page) == [
        "What was found",
        "Accuracy against density",
        "Accuracy against retraining time",
        "Accuracy against search cost",
        "Efficiency",
        "Density by layer",
        "Loss curves",
        "What not to conclude",
        "Runs",
        "Where it comes from",
    ]
    assert "learning rates (no run left a trace)" in page  # said in a line
    assert "Torch is not faster for it" in page
    assert "Of several retraining times each technique stands with the one that validation chooses" in page
    assert " is better than " in page or " is worse than " in page or "No difference shown" in page
    assert "resnet56, Unstructured, iterative" in page


def test_sections_without_data_are_left_out_and_named(make_study):
    study = make_study()
    for run in study["runs"]:
        for done in run["rounds"]:
            del done["log"], done["densities"], done["multiply_adds"]
    page = make_page(study)
    assert {"Loss curves", "Density by layer", "Efficiency", "Accuracy against retraining time"}.isdisjoint(
        titles(page)
    )
    says = re.search(r"Nothing to show of: ([^<]*)", page).group(1)
    assert all(
        word in says for word in ("retraining time", "efficiency", "layer", "learning rates", "loss curves")
    )


def test_where_zeros_bring_no_speed_it_is_said_without_a_measurement_too(make_study):
    assert "with zeros alone expect no speed" in make_page(make_study())


def test_a_study_without_a_finished_run_is_a_page(make_study):
    study = make_study()
    for run in study["runs"]:
        run.update(status="waiting", rounds=[], search_cost={})
        del run["test"]
    study["runs"][0].update(status="failed", error="RuntimeError: no space")
    page = make_page(study)
    assert "No run has finished yet" in page or "failed and are left out" in page
    assert "1 run failed: RuntimeError: no space" in page
    assert "5 waiting" in page


def test_one_run_with_one_seed_is_a_page(make_study):
    page = make_page(make_study({"lr-rewinding": 0.1}, seeds=1, rounds=2))
    assert "Fewer than three seeds" in page


def test_lower_may_be_better_and_values_may_be_large(make_study):
    study = make_study()
    study["metric"] = {"name": "mse", "higher_is_better": False}
    for run in study["runs"]:
        for done in run["rounds"]:
            done["metrics"]["mse"] = 3000 * (1 - done["metrics"]["accuracy"])
    page = make_page(study)
    assert "lower is better" in page and "percentage points" not in page


def test_what_must_not_be_compared_has_figures_of_its_own(make_study):
    study, units = make_study(), make_study(tensors=4)
    for run in study["runs"]:
        run["cell"]["pattern"] = "weight"
    for run in units["runs"]:
        run["cell"]["pattern"] = "channel"
        run["label"] += ", channel"
        for done in run["rounds"]:
            done["unit_density"] = done["density"]
    page = make_page({**study, "runs": study["runs"] + units["runs"]})
    assert [title for title in titles(page) if "against density" in title] == [
        "Accuracy against density: weight",
        "Accuracy against density: channel",
    ]
    assert re.findall(r'data-shows="(\d+)"', page) == ["0", "1", "2", "3"]
    assert (
        "channel: lr-rewinding" in page
        and "kept / prunable units" in page
        and "kept / prunable weights" in page
    )
    read = Page(page)
    assert len(read.ids) == len(set(read.ids))
    files = re.findall(r'download="([^"]*)"', page)
    assert len(files) == len(set(files))


def test_hostile_names_stay_text(make_study):
    study = make_study({HOSTILE: 0.1, "_private": 0.2}, name=HOSTILE, task=HOSTILE)
    study["recipe"] = study["command"] = HOSTILE
    study["machine"] = {HOSTILE: HOSTILE}
    study["runs"][0].update(status="failed", error=HOSTILE)
    for run in study["runs"]:
        for done in run["rounds"]:
            done["densities"] = {HOSTILE: 0.5, "other": done["density"]}
    page = make_page(study)
    read = Page(page)
    assert read.tags.count("script") == 1 and "img" not in read.tags and not read.handlers
    assert "\x07" not in page and HOSTILE not in page


def test_names_may_be_of_any_script(make_study):
    study = make_study({"\u5fae\u8c03": 0.1}, name="\u5b9e\u9a8c \U0001f3af")
    for run in study["runs"]:
        for done in run["rounds"]:
            done["metrics"]["\u7cbe\u5ea6"] = done["metrics"]["accuracy"]
    study["metric"]["name"] = "\u7cbe\u5ea6"
    page = make_page(study)
    assert page.count("\u7cbe\u5ea6") > 10 and ">\u5fae\u8c03</text>" in page


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_run_of_which_nothing_is_left_is_a_page(make_study, rounds):
    study = make_study({"lr-rewinding": 0.1}, seeds=1, rounds=2)
    for done in study["runs"][0]["rounds"]:
        done.update(
            metrics={"accuracy": None if rounds == 1 else 0.0}, multiply_adds=[0, 10], log=[{"loss": None}]
        )
        done.update(densities={"x": 0.0, "y": 0.0}, collapsed=["x", "y"])
    study["runs"][0]["rounds"] = study["runs"][0]["rounds"][: max(rounds, 1)]
    if rounds == 0:
        study["runs"] = []
    assert "What not to conclude" in make_page(study)


def test_nothing_is_asked_of_a_network(make_study, overlay_file):
    page = make_page(make_study(ts=(5, 20)), overlays=read_overlay(overlay_file))
    links = Page(page).links
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.findall(r"url\((?!#)", page)
    head = html.unescape(page.split("<style>")[0])
    assert "default-src 'none'" in head and "connect-src" not in head


def test_identifiers_are_there_once(make_study):
    ids = Page(make_page(make_study(ts=(5, 20)))).ids
    assert len(ids) == len(set(ids))


def test_every_series_can_be_hidden_and_every_seed_is_drawn(make_study):
    page = make_page(make_study())
    assert re.findall(r'data-shows="(\d+)"', page) == ["0", "1"]
    for k in "01":
        assert f'data-series="{k}"' in page
        assert re.search(f'data-series="{k}" data-part="seeds"|data-part="seeds" data-series="{k}"', page)


def test_points_have_titles(make_study):
    assert re.search(
        r"<title>lr-rewinding: accuracy 0\.9\d\d \(0\.9\d\d to 0\.9\d\d, 3 seeds\) at density 0\.8, 1\.25x",
        make_page(make_study()),
    )


def test_the_same_study_makes_the_same_page(make_study):
    first, second = (re.sub("Made on [^<]*", "", make_page(make_study())) for _ in range(2))
    assert first == second


def test_one_shot_runs_are_points_of_one_line(make_study):
    study = make_study({"lr-rewinding": 0.05}, seeds=2)
    runs = []
    for run in study["runs"]:
        for k in range(1, 6):
            cell = {**run["cell"], "rate": "one-shot", "until": 0.8**k}
            runs.append({**run, "cell": cell, "rounds": [run["rounds"][0], {**run["rounds"][k], "index": 1}]})
    page = make_page({**study, "runs": runs})
    assert re.findall(r'data-shows="(\d+)"', page) == ["0"]
    assert "at density 0.328" in page


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_twenty_seconds(make_study):
    lost = dict.fromkeys(
        ("fine-tuning", "weight-rewinding", "lr-rewinding", "lottery-ticket", "cyclic-restart"), 0.1
    )
    study = make_study(lost, ts=(5, 10, 15, 20), seeds=50, rounds=12)
    assert len(study["runs"]) == 1000
    began = time.process_time()
    page = make_page(study)
    assert time.process_time() - began < 20
    assert len(page) < 8e6


@pytest.fixture
def real_run(tmp_path, make_study):
    """A study with one run that was really trained, its folder beside it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    run = rewound.Run(
        model, optimizer, epochs=4, until="2 rounds", scheduler=scheduler, folder=tmp_path / "arm"
    )
    x = torch.randn(20, 6)
    for _ in run:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        scheduler.step()
        run.log(loss=loss.item(), accuracy=0.9)
    study = make_study({"lr-rewinding": 0.1}, seeds=1)
    plain = run.result.to_dict()
    rounds = [{key: value for key, value in done.items() if key != "log"} for done in plain["rounds"]]
    study["runs"][0].update(rounds=rounds, folder="arm", best=2)
    return {**study, "folder": str(tmp_path)}


def test_learning_rates_are_those_of_the_trace(real_run):
    section = rates_section(View.of(real_run))
    rows = section.panels[0].table.rows
    assert [(row[2], row[3]) for row in rows] == [(0, 12), (1, 12), (2, 12)]
    assert all(row[4:] == pytest.approx((0.1, 0.1, 0.01)) for row in rows)


def test_loss_curves_come_from_the_folder_where_results_are_slim(real_run):
    table = losses_section(View.of(real_run)).panels[0].table
    assert len(table.rows) == 12 and table.head[-1] == "loss"
    assert [row[2:4] for row in table.rows[3:6]] == [(0, 3), (1, 0), (1, 1)]


def test_the_command_writes_a_page(tmp_path, make_study, write_grid):
    write_grid(tmp_path / "one", make_study())
    out = tmp_path / "sub" / "page.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "one"), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["finished"] == 6
    assert out.read_text().startswith("<!doctype html>")


def test_several_grids_share_a_page(tmp_path, make_study, write_grid):
    for name, technique in (("one", "fine-tuning"), ("two", "lr-rewinding")):
        study = make_study({technique: 0.1})
        for run in study["runs"]:
            run["key"] = name + run["key"]
        write_grid(tmp_path / name, study)
    out = tmp_path / "r.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(out), "--json"])
    assert json.loads(done.stdout)["runs"] == 6
    assert re.findall(r'data-shows="(\d+)"', out.read_text()) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["one", "--overlay", "none.csv"], "there is no overlay"),
        (["one", "--bench", "none.json"], "there is no measurement"),
        (["one", "-o", "."], "is a folder"),
    ],
)
def test_what_is_missing_is_said_and_nothing_written(
    tmp_path, make_study, write_grid, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path / "one", make_study())
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 2 and says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_measurement_that_is_none_is_refused(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="has no zeros, threads, verdict, rows"):
        read_bench(path)
