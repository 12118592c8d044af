"""Runtimes side by side: turns are fair, wrong results do not count, and the sentence at the end is honest."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import rewound
from rewound.measure import machine
from rewound.measure.bench import compare as comparing
from rewound.measure.bench import runtimes
from rewound.measure.bench.compare import compare
from rewound.measure.bench.fresh import measure_fresh
from rewound.measure.bench.networks import Flat, Zeros, dense_twin, in_float64, largest_error, tensors_of
from rewound.measure.bench.runtimes import RUNTIMES
from rewound.measure.bench.turns import take_turns
from rewound.measure.bench.verdict import at_batch, verdict
from rewound.measure.latency import Timing

HERE = [name for name, runtime in RUNTIMES.items() if not runtime.missing]
FILES = [
    name for name in HERE if name != "torch.compile"
]  # which compiles anew in the new process: half a minute


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)
    )
    return model, torch.randn(2, 3, 8, 8)


def pruned():
    model, x = network()
    rewound.prune(model, 0.1).apply_(model)
    return model, x


# ---- turns ------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self):
        self.now, self.made = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def made():
            self.made.append(name)
            self.now += seconds

        return made


def test_calls_take_turns_in_changing_order():
    clock = Clock()
    calls = {name: clock.call(name, 0.1) for name in "abc"}
    found = take_turns(calls, rounds=3, clock=clock, cpu_clock=clock)
    order = "".join(clock.made[-18:])  # a block is one call that does not count and one that does
    assert order == "aabbcc" + "bbccaa" + "ccaabb"
    assert all(turns.wall == pytest.approx((0.1,) * 3) for turns in found.values())
    assert all(len(turns.calls) == 3 for turns in found.values())


def test_short_calls_fill_a_block():
    clock = Clock()
    found = take_turns({"a": clock.call("a", 0.001)}, rounds=2, clock=clock, cpu_clock=clock)
    assert len(found["a"].calls) == 2 * 30
    assert found["a"].cpu == pytest.approx((0.001, 0.001))


def test_three_rounds_are_made_whatever_they_take():
    clock = Clock()
    found = take_turns({"a": clock.call("a", 9.0)}, rounds=50, seconds=1.0, clock=clock, cpu_clock=clock)
    assert len(found["a"].wall) == 3


def test_calls_are_warmed_up_until_they_take_alike():
    clock, slow = Clock(), iter([0.5, 0.2, 0.1, 0.05, 0.05, 0.05])

    def call():
        clock.now += next(slow, 0.05)

    found = take_turns({"a": call}, rounds=1, clock=clock, cpu_clock=clock)
    assert found["a"].wall == pytest.approx((0.05,))


# ---- the network and its outputs --------------------------------------------------------------------------


class Named(nn.Module):
    """Takes keywords, one of them no tensor, and gives a dict."""

    def forward(self, x, *, y, scale=1.0):
        return {"sum": scale * (x + y), "none": None, "both": [x, y]}


def test_any_call_becomes_tensors_to_tensors():
    example = {"y": torch.ones(2), "x": torch.zeros(2), "scale": 3.0}
    flat, tensors = Flat(Named(), example), tensors_of(example)
    assert len(tensors) == 2
    assert [t.tolist() for t in flat(*tensors)] == [[3.0, 3.0], [0.0, 0.0], [1.0, 1.0]]


def test_the_twin_has_no_zeros_and_the_model_keeps_its_own():
    model, _ = pruned()
    before = Zeros.of(model)
    twin = dense_twin(model)
    assert Zeros.of(twin).zeros == 0
    assert Zeros.of(model) == before
    assert before.share == pytest.approx(0.9, abs=0.001)
    kept = model[4].weight != 0
    assert torch.equal(twin[4].weight[kept], model[4].weight[kept])


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ([[1.0, 2.0, -4.0]], 0.0),
        ([[1.0, 2.0, -3.0]], 0.25),
        ([[1.0, 2.0]], np.inf),
        ([], np.inf),
        ([[1.0, 2.0, np.nan]], np.inf),
    ],
)
def test_the_largest_error_is_relative_and_sees_what_is_missing(found, error):
    assert largest_error([np.array(row) for row in found], [np.array([1.0, 2.0, -4.0])]) == error


def test_outputs_that_are_not_finite_may_be_so():
    odd = np.array([np.inf, np.nan, 1.0])
    assert largest_error([odd], [odd]) == 0


# ---- the whole comparison ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_every_runtime_that_is_here_computes_the_network(name):
    model, x = pruned()
    found = compare(model, x, runtimes=[name], rounds=3, seconds=1, fresh=False, twin=False)
    assert not found.left_out
    row = found.row(name)
    assert row.right
    assert row.error < 1e-5
    assert row.batch == 2
    assert row.p95 >= row.wall.median > 0


def test_the_model_is_left_as_it_was():
    model, x = pruned()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare(model, x, runtimes=["torch"], rounds=3, seconds=1, fresh=False)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batches_threads_and_everything_in_json():
    model, x = pruned()
    threads = torch.get_num_threads()
    found = compare(
        model, x, runtimes=["torch"], batches=[3, 1], rounds=3, seconds=1, fresh=False, name="toy"
    )
    assert torch.get_num_threads() == threads
    assert [(row.network, row.batch) for row in found.rows] == [
        ("model", 3),
        ("dense twin", 3),
        ("model", 1),
        ("dense twin", 1),
    ]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["rows"][0]["rows_per_second"] > 0
    assert plain["machine"]["threads"] == 1
    assert "At batch" not in found.verdict  # there is no engine to compare
    text = str(found)
    assert "toy: 5,336 weights. 90 % of the weights are zero." in text
    assert text.splitlines()[-1] == found.verdict
    with pytest.raises(KeyError, match="no row for 'engine' on the model at batch 3"):
        found.row("engine", 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtimes": ["onnxruntme"]}, "no runtime named 'onnxruntme': did you mean 'onnxruntime'"),
        ({"runtimes": []}, "'runtimes' must name one at least"),
        ({"threads": 0}, "'threads' must be whole numbers from 1"),
        ({"batches": [1, 0]}, "'batches' must be whole numbers from 1"),
        ({"rounds": 0}, "'rounds' must be whole numbers from 1"),
    ],
)
def test_what_cannot_be_asked_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        compare(*network(), **options)


def test_what_is_not_installed_is_named_with_the_extra(monkeypatch):
    absent = replace(RUNTIMES["onnxruntime"], needs=("no_such_runtime",))
    monkeypatch.setitem(RUNTIMES, "onnxruntime", absent)
    found = compare(*network(), runtimes=["torch", "onnxruntime"], rounds=3, seconds=1, fresh=False)
    assert found.left_out == {
        "onnxruntime": "left out: no_such_runtime not installed (pip install 'rewound[bench]')"
    }
    assert [row.runtime for row in found.rows] == ["torch"]


def test_what_cannot_run_the_network_is_named_with_the_reason(monkeypatch):
    def make(module, inputs, threads, path):
        raise NotImplementedError("no kernel for frobnicate\nand a long story")

    monkeypatch.setitem(RUNTIMES, "openvino", replace(RUNTIMES["openvino"], needs=(), make=make))
    found = compare(*network(), runtimes=["openvino", "torch"], rounds=3, seconds=1, fresh=False)
    reason = "cannot run this network (NotImplementedError: no kernel for frobnicate)"
    assert found.left_out == {"openvino": reason}
    assert f"OpenVINO: {reason}" in str(found)


def test_a_wrong_result_does_not_count(monkeypatch):
    def make(module, inputs, threads, path):
        return lambda arrays: lambda: [np.zeros((2, 10))]  # very fast

    monkeypatch.setitem(RUNTIMES, "engine", replace(RUNTIMES["engine"], make=make))
    found = compare(*pruned(), runtimes=["engine", "torch"], rounds=3, seconds=1, fresh=False)
    assert not found.row("engine").right
    assert "the engine is wrong: its error is 1.0e+00" in str(found)
    assert "engine" not in found.verdict


def test_a_model_that_cannot_be_widened_is_compared_with_float32():
    class Narrow(nn.Module):
        def forward(self, x):
            return torch.zeros(4, 4) @ x.reshape(4, 4)

    found = compare(Narrow(), torch.ones(1, 16), runtimes=["torch"], rounds=3, seconds=1, fresh=False)
    assert found.against == "torch in float32"
    assert found.row("torch").error == 0


# ---- a process of its own ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_load_time_and_memory_in_a_process_of_its_own(name, tmp_path):
    model, x = pruned()
    path = tmp_path / f"network{RUNTIMES[name].suffix}"
    module = Flat(model, x).eval()
    bind = RUNTIMES[name].make(module, (x,), 1, path)
    assert largest_error(bind([x.numpy()])(), in_float64(module, (x,))) < 1e-5
    np.savez(tmp_path / "inputs.npz", x.numpy())
    found = measure_fresh(name, path, tmp_path / "inputs.npz")
    assert found["load_seconds"] > 0
    assert found["first_call_seconds"] > 0
    assert found["torch_imported"] == (name == "torch")
    if machine.resident() is not None:
        assert found["peak_added"] >= found["resident_added"] >= 0
        assert found["resident_before"] > 1e6


def test_a_failure_in_the_new_process_is_told(tmp_path):
    np.savez(tmp_path / "inputs.npz", np.ones(1))
    with pytest.raises(RuntimeError, match=r"torch failed in a process of its own: .*nothing\.pt2"):
        measure_fresh("torch", tmp_path / "nothing.pt2", tmp_path / "inputs.npz")


def test_the_table_of_runtimes_imports_no_torch():
    code = (
        "import sys, rewound.measure.bench.fresh, rewound.measure.bench.turns; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- the verdict ------------------------------------------------------------------------------------------


def steady(milliseconds):
    return Timing((milliseconds / 1e3,) * 3, "cpu", 1)


@pytest.mark.parametrize(
    ("share", "times", "twins", "says"),
    [
        (
            0.9,
            {"torch": 9.0, "onnxruntime": 4.3, "engine": 1.0},
            {"torch": 9.0, "onnxruntime": 4.343},
            "90 % of the weights are zero. ONNX Runtime is not faster for it (1.01x against the same network dense). "
            "The engine is 4.3 times as fast as ONNX Runtime, the fastest dense runtime here.",
        ),
        (
            0.9,
            {"onnxruntime": 1.0, "engine": 2.0},
            {},
            "90 % of the weights are zero. "
            "The engine brings nothing here: use ONNX Runtime, which is 2.00 times as fast.",
        ),
        (
            0.0,
            {"openvino": 1.0, "engine": 1.2},
            {},
            "No weight is zero. "
            "The engine brings nothing here for want of zeros: use OpenVINO, which is 1.20 times as fast.",
        ),
        (
            0.5,
            {"openvino": 1.0, "torch": 2.0, "engine": 1.01},
            {},
            "50 % of the weights are zero. The engine brings nothing here: "
            "it is as fast as OpenVINO, the fastest dense runtime here (0.99x (0.99 - 0.99)).",
        ),
        (
            0.95,
            {"torch": 1.5, "engine": 1.0},
            {},
            "95 % of the weights are zero. "
            "The engine is 1.50 times as fast as torch (the only dense runtime measured).",
        ),
        (0.9, {"engine": 1.0}, {}, "90 % of the weights are zero. No dense runtime was measured beside the engine."),
        (
            0.8,
            {"torch": 1.0, "openvino": 0.5},
            {"torch": 1.0, "openvino": 0.6},
            "80 % of the weights are zero. OpenVINO is 1.20x faster than on the same network dense. "
            "OpenVINO is the fastest here.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_honest(share, times, twins, says):
    timed = [{name: steady(ms) for name, ms in table.items()} for table in (times, twins)]
    assert verdict(share, *timed) == says


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (
            {"torch": 4.0, "openvino": 3.0, "engine": 1.0},
            "At batch 8 the engine takes 1/3.0 of the time of OpenVINO.",
        ),
        ({"torch": 1.0, "engine": 1.5}, "At batch 8 the engine takes 1.50 times the time of torch."),
        ({"torch": 1.0}, ""),
        ({"engine": 1.0}, ""),
    ],
)
def test_other_batches_are_told(times, says):
    assert at_batch(8, {name: steady(ms) for name, ms in times.items()}) == says


def test_every_file_of_a_network_counts_and_no_other(tmp_path):
    assert runtimes.files_of(tmp_path / "model.xml") == [tmp_path / "model.xml", tmp_path / "model.bin"]
    assert runtimes.files_of(tmp_path / "model.engine") == [tmp_path / "model.engine"]


def test_ratios_that_might_be_one_are_no_gain():
    noisy = Timing((0.001, 0.003, 0.0008), "cpu", 1)
    assert "brings nothing" in verdict(0.9, {"torch": steady(1.1), "engine": noisy}, {})


# ---- this machine -----------------------------------------------------------------------------------------


def test_facts_name_versions_but_no_host():
    found = machine.facts()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert {name for name in machine.RUNTIMES if name in found} >= {n for n in HERE if n in machine.RUNTIMES}
    import platform

    assert platform.node() not in json.dumps(found) or not platform.node()


def test_a_thread_is_kept_on_cores_and_let_go():
    import os

    if not hasattr(os, "sched_getaffinity"):
        with machine.on_cores(1) as cores:
            assert cores == []
        return
    before = os.sched_getaffinity(0)
    with machine.on_cores(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_every_runtime_has_a_name_for_sentences_and_what_it_needs():
    assert set(runtimes.TITLES) <= set(RUNTIMES)
    assert RUNTIMES["engine"].needs == ()
    assert [name for name, runtime in RUNTIMES.items() if not runtime.dense] == ["engine"]
    assert comparing.MODEL != comparing.TWIN
