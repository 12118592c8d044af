"""From finished runs to files: which network is taken, that it is the trained one, and that a wrong engine is not kept."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import rewound
import rewound.runtime
from rewound.cli import app
from rewound.experiment.export import as_lines, export
from rewound.experiment.networks import Candidate, candidates, choose, find_network, network_of
from rewound.experiment.store import read_json, read_results
from rewound.tasks import load_task

SMALL = Candidate(Path("a"), "fine-tuning", 0, 0.05, "accuracy", 0.90, 0.05)
GOOD = Candidate(Path("b"), "lr-rewinding", 0, 0.10, "accuracy", 0.945, 0.005)
LARGE = Candidate(Path("c"), "lr-rewinding", 1, 0.20, "accuracy", 0.95, 0.0)
ALL = [SMALL, GOOD, LARGE]


# ---- which network ----------------------------------------------------------------------------------------


def test_the_smallest_that_lost_little_is_taken():
    chosen, why = choose(ALL)
    assert chosen is GOOD
    assert why == "the smallest of 3 that lost at most 1.0% of accuracy"
    assert choose(ALL, within=0.05)[0] is SMALL
    assert choose(ALL, within=0)[0] is LARGE


def test_where_all_lost_much_the_least_loss_is_taken_and_said():
    chosen, why = choose([SMALL, replace(SMALL, seed=1, lost=0.03)])
    assert chosen.seed == 1
    assert why == "all 2 lost more than 1.0% of accuracy; this one lost least (3.0%)"


def test_technique_and_seed_narrow_the_choice():
    assert choose(ALL, technique="fine-tuning") == (SMALL, "the only one")
    assert choose(ALL, seed=1)[0] is LARGE
    with pytest.raises(
        ValueError, match="no finished run of technique x, seed any; there is fine-tuning, seed 0;"
    ):
        choose(ALL, technique="x")


def test_candidates_are_what_runs_ended_with(finished_experiment):
    found = candidates(finished_experiment)
    arms = read_results(finished_experiment)["arms"]
    assert [(c.technique, c.density) for c in found] == [
        (arm["technique"], arm["rounds"][arm["best"]]["density"]) for arm in arms
    ]
    first, last = arms[0]["rounds"][0]["metrics"]["accuracy"], arms[0]["rounds"][-1]["metrics"]["accuracy"]
    assert found[0].lost == pytest.approx((first - last) / first)


def test_the_network_of_a_run_is_the_one_that_was_trained(finished_experiment):
    chosen = candidates(finished_experiment)[1]
    model, example = network_of(chosen.folder, rows=3)
    assert not model.training
    assert example.shape[0] == 3
    result = read_json(chosen.folder / "result.json")
    last = result["rounds"][result["best"]]
    assert load_task("digits").evaluate(model)["accuracy"] == pytest.approx(last["metrics"]["accuracy"])
    assert sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1) == last["kept"]


# ---- what may be named ------------------------------------------------------------------------------------


def test_a_function_a_file_and_a_folder_can_be_named(tmp_path, monkeypatch, finished_experiment):
    monkeypatch.chdir(tmp_path)
    text = "import torch\ndef made():\n    return torch.nn.Linear(3, 2), torch.zeros(1, 3)\ndef wrong():\n    return 1\n"
    (tmp_path / "some_networks.py").write_text(text)
    for named in ("some_networks:made", "some_networks.py:made"):
        model, example, what = find_network(named)
        assert isinstance(model, nn.Linear)
        assert (example.shape, what) == ((1, 3), named)
    with pytest.raises(ValueError, match=r"some_networks:wrong\(\) must return \(model, example\)"):
        find_network("some_networks:wrong")
    with pytest.raises(ValueError, match="some_networks has no function 'other'"):
        find_network("some_networks:other")
    sys.modules.pop("some_networks")
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), tmp_path / "net.pt2")
    model, example, what = find_network("net.pt2")
    assert what == "net.pt2"
    assert model(*example).shape == (1, 2)
    model, example, what = find_network(str(finished_experiment))
    assert "the smallest of 2" in what or "this one lost least" in what
    assert example.shape[0] == 1


@pytest.mark.parametrize(
    ("named", "error", "says"),
    [
        ("nothing", ValueError, "is no run's folder, no .pt2 file and no module:function"),
        ("nothing.pt2", FileNotFoundError, "there is no file 'nothing.pt2'"),
        ("nothing.py:made", FileNotFoundError, "no file 'nothing.py'"),
        (".", FileNotFoundError, "is no run, no experiment and no grid"),
    ],
)
def test_what_cannot_be_found_is_said(named, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        find_network(named)


def test_a_run_of_a_loop_of_ones_own_is_refused_with_what_to_do(tmp_path):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = rewound.Run(model, optimizer, epochs=1, rate=0.5, until="1 round", folder=tmp_path / "own")
    for _ in run:
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    with pytest.raises(ValueError, match=r"comes from a loop of your own.*module:function"):
        export(tmp_path / "own", engine=tmp_path / "x.engine")


# ---- export -----------------------------------------------------------------------------------------------


def test_plain_weights_are_those_of_the_network(finished_experiment, tmp_path):
    found = export(finished_experiment, weights=tmp_path / "net.safetensors", technique="fine-tuning")
    model, _ = network_of(candidates(finished_experiment)[0].folder)
    written = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in model.state_dict().items())
    assert found["weights_file"]["bytes"] == (tmp_path / "net.safetensors").stat().st_size
    assert "fine-tuning, seed 0" in as_lines(found)[0]


def test_an_engine_is_checked_and_gives_what_the_model_gives(finished_experiment, tmp_path):
    path = tmp_path / "net.engine"
    found = export(finished_experiment, engine=path, technique="fine-tuning", measure=True)
    model, x = network_of(candidates(finished_experiment)[0].folder, rows=5)
    given = np.asarray(rewound.runtime.load(path)(x.numpy()))
    with torch.no_grad():
        assert np.allclose(given, model(x).numpy(), atol=1e-5)
    assert found["engine_file"]["error"] < 1e-5
    assert found["engine_file"]["bytes"] < found["engine_file"]["dense_bytes"]
    assert set(found["latency"]) == {"torch", "engine"}
    assert [line.split()[0] for line in as_lines(found)[2:]] == ["engine", "parity", "latency"]
    assert [p.name for p in tmp_path.iterdir()] == ["net.engine"]


class Wrong:
    """An engine that gives zeros."""

    def save(self, path):
        Path(path).write_bytes(b"engine")

    def __call__(self, x):
        return np.zeros((len(x), 10), np.float32)


def test_a_wrong_engine_is_not_kept(finished_experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(rewound.runtime, "compile", lambda *_, **__: Wrong(), raising=False)
    monkeypatch.setattr(rewound.runtime, "load", lambda *_, **__: Wrong(), raising=False)
    with pytest.raises(ValueError, match=r"the engine's outputs are not the model's: error 1\.0e"):
        export(finished_experiment, engine=tmp_path / "net.engine")
    assert list(tmp_path.iterdir()) == []


def test_nothing_asked_and_nowhere_to_write_are_said(finished_experiment, tmp_path):
    with pytest.raises(ValueError, match="nothing to write: give --engine PATH, --weights PATH, or both"):
        export(finished_experiment)
    with pytest.raises(FileNotFoundError, match="there is no folder for"):
        export(finished_experiment, engine=tmp_path / "no" / "net.engine")


# ---- the commands -----------------------------------------------------------------------------------------


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_bench_prints_a_table_and_writes_json(finished_experiment, tmp_path):
    out = tmp_path / "bench.json"
    done = command(
        "bench", finished_experiment, "--runtimes", "torch", "--rounds", 3, "--batch", 2, "--out", out
    )
    assert done.exit_code == 0, done.output
    assert "ms (quartiles)" in done.stdout
    assert "of the weights are zero" in done.stdout
    assert [row["batch"] for row in json.loads(out.read_text())["rows"]] == [2, 2]


def test_bench_as_json_is_one_document(finished_experiment):
    done = command("bench", finished_experiment, "--runtimes", "torch", "--rounds", 3, "--json")
    assert json.loads(done.stdout)["rows"][0]["runtime"] == "torch"
    assert "torch, batch 1: preparing" in done.stderr


def test_commands_say_what_is_wrong(finished_experiment):
    done = command("bench", finished_experiment, "--runtimes", "tensorrt")
    assert (done.exit_code, "no runtime named 'tensorrt'" in done.stderr) == (2, True)
    done = command("export", finished_experiment)
    assert (done.exit_code, "nothing to write" in done.stderr) == (2, True)


def test_export_tells_what_it_wrote(finished_experiment, tmp_path):
    done = command("export", finished_experiment, "--weights", tmp_path / "net.safetensors")
    assert done.exit_code == 0, done.output
    assert "density" in done.stdout
    assert (tmp_path / "net.safetensors").is_file()
