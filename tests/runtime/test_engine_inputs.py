"""What an engine is given, refused by name where it does not fit; and what it is made of, odd and hostile weights."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewound import runtime
from rewound.runtime import _native
from rewound.runtime import engine as engine_module
from rewound.runtime.parts import Alone


class Two(nn.Module):
    """Two inputs, one of them optional; nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> dict[str, Any]:
        z = self.fc(x) * scale
        return {"sum": z + y, "parts": (z, [y]), "best": z.argmax(1)}


@pytest.fixture(scope="module")
def two() -> tuple[nn.Module, runtime.Engine]:
    torch.manual_seed(0)
    model = Two().eval()
    return model, runtime.compile(model, (torch.randn(2, 4), torch.randn(2, 3)))


@pytest.fixture(scope="module")
def small() -> runtime.Engine:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))
    return runtime.compile(model.eval(), torch.randn(1, 3, 6, 6))


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_nested_results_and_named_arguments(two: tuple[nn.Module, runtime.Engine]) -> None:
    model, engine = two
    a, b = torch.randn(5, 4), torch.randn(5, 3)
    theirs, mine = model(a, b), engine(a, y=b)
    assert mine.keys() == theirs.keys()
    assert torch.allclose(mine["sum"], theirs["sum"], atol=1e-6)
    assert isinstance(mine["parts"], tuple) and isinstance(mine["parts"][1], list)
    assert torch.equal(mine["best"], theirs["best"]) and mine["best"].dtype == torch.int64
    arrays = engine(a.numpy(), b.numpy())
    assert isinstance(arrays["sum"], np.ndarray)
    assert np.array_equal(arrays["sum"], mine["sum"].numpy()) and arrays["best"].dtype == np.int64


@pytest.mark.parametrize("kind", [tuple, list])
def test_one_result_in_a_sequence(kind: type) -> None:
    class Wraps(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return kind((super().forward(x),))

    engine = runtime.compile(Wraps(4, 2).eval(), torch.zeros(1, 4))
    (one,) = engine(x(1, 4))
    assert type(engine(x(1, 4))) is kind and one.shape == (1, 2)
    assert isinstance(engine(torch.zeros(20, 4))[0], Tensor)


def test_results_are_nobody_elses_memory(two: tuple[nn.Module, runtime.Engine]) -> None:
    engine = two[1]
    a, b = x(2, 4), x(2, 3)
    first = engine(a, b)
    assert not np.shares_memory(first["parts"][1][0], b)
    kept = first["sum"].copy()
    engine(a + 1, b)
    assert np.array_equal(first["sum"], kept)


def test_bad_arguments_are_named(two: tuple[nn.Module, runtime.Engine]) -> None:
    engine = two[1]
    with pytest.raises(TypeError, match="'y' is missing"):
        engine(x(2, 4))
    with pytest.raises(TypeError, match="3 arguments"):
        engine(x(2, 4), x(2, 3), 3.0)
    with pytest.raises(TypeError, match="without an argument 'z'"):
        engine(x(2, 4), z=x(2, 3))
    with pytest.raises(ValueError, match="different batches"):
        engine(x(2, 4), x(3, 3))


def test_bad_arrays_are_refused_with_advice(small: runtime.Engine) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 7, 6\).*\(batch, 3, 6, 6\)"):
        small(x(1, 3, 7, 6))
    with pytest.raises(ValueError, match="compile again"):
        small(x(3, 6, 6))
    with pytest.raises(TypeError, match=r"float64; the engine takes float32.*astype"):
        small(x(1, 3, 6, 6).astype(np.float64))
    with pytest.raises(TypeError, match=r"float16.*\.float\(\)"):
        small(torch.zeros(1, 3, 6, 6).half())
    with pytest.raises(TypeError, match="uint8"):
        small(np.zeros((1, 3, 6, 6), np.uint8))
    with pytest.raises(TypeError, match="is a list"):
        small([[1.0]])
    with pytest.raises(TypeError, match=r"on meta.*\.cpu\(\)"):
        small(torch.zeros(1, 3, 6, 6, device="meta"))


def test_arrays_that_are_not_contiguous_are_copied(small: runtime.Engine) -> None:
    whole = x(6, 6, 3, 4)
    given = whole.transpose(3, 2, 0, 1)[::-1]
    before = whole.copy()
    assert np.array_equal(small(given), small(np.ascontiguousarray(given)))
    assert np.array_equal(whole, before)


def test_ids_beyond_their_table() -> None:
    engine = runtime.compile(
        nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)).eval(), torch.zeros(1, 3).long()
    )
    assert engine(np.full((2, 3), 6, np.int32)).shape == (2, 3, 2)
    with pytest.raises(IndexError, match="id 7"):
        engine(np.full((2, 3), 7))
    with pytest.raises(TypeError, match="float32; the engine takes int64"):
        engine(x(2, 3))


def test_a_batch_that_was_fixed(tmp_path: Path) -> None:
    engine = runtime.compile(nn.Linear(4, 2).eval(), torch.zeros(3, 4), dynamic_batch=False)
    assert engine(x(3, 4)).shape == (3, 2)
    engine.save(tmp_path / "three.engine")
    for fixed in (engine, runtime.load(tmp_path / "three.engine")):
        with pytest.raises(ValueError, match="batches of 3"):
            fixed(x(2, 4))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, 5000])
def test_threads_must_be_a_number(threads: Any) -> None:
    with pytest.raises(ValueError, match="'threads'"):
        runtime.compile(nn.Linear(4, 2), torch.zeros(1, 4), threads=threads)


def test_a_model_that_the_data_decide_is_refused() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(ValueError, match=r"test_engine_inputs\.py"):
        runtime.compile(Decides(), torch.zeros(1, 4))


# -- weights --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_inputs_that_are_no_numbers(number: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    given = torch.randn(3, 3, 4, 4)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[0].weight[1, 2, 1, 1] = number
        broken[2].weight[3, 7] = number
    spoilt = given.clone()
    spoilt[1, 2, 3, 3] = number
    for one, inputs in ((broken, given), (model, spoilt)):
        mine, theirs = runtime.compile(one, given)(inputs), one(inputs).detach()
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.allclose(mine, theirs, atol=1e-5, equal_nan=True)


def test_zeros_do_not_spread_what_is_no_number() -> None:
    """Zeros that are skipped are skipped: a pruned connection does not carry NaN or infinity, unlike 0 * NaN."""
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, 0] = 1.0
    given = torch.full((20, 4), float("nan"))
    given[:, 0] = 2.0
    assert torch.equal(runtime.compile(model, given)(given)[:, 0], torch.full((20,), 2.0))


def test_layers_of_nothing_but_zeros_and_empty_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.Linear(45, 4)
    )
    with torch.no_grad():
        model[0].weight[2:5] = 0
        model[2].weight.zero_()
        model[4].weight[1] = 0
    given = torch.randn(4, 3, 6, 6)
    assert torch.allclose(runtime.compile(model, given)(given), model(given), atol=1e-6)


# -- life of an engine ----------------------------------------------------------------------------------------------------------


def test_threads_of_python_share_an_engine(small: runtime.Engine) -> None:
    given = [x(n, 3, 6, 6) for n in range(1, 9)]
    right = [small(one) for one in given]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not np.array_equal(small(given[i]), right[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(engine: runtime.Engine, given: np.ndarray, answer: Any) -> None:
    answer.put(engine(given))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_engine_survives_a_fork() -> None:
    engine = runtime.compile(nn.Linear(40, 300).eval(), torch.zeros(1, 40), threads=2)
    given = x(9, 40)
    right = engine(given)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_in_child, args=(engine, given, answer))
    child.start()
    assert np.array_equal(answer.get(timeout=30), right)
    child.join(30)
    assert np.array_equal(engine(given), right)


def test_copies_pickles_and_files_compute_the_same(small: runtime.Engine, tmp_path: Path) -> None:
    given = x(3, 3, 6, 6)
    path = tmp_path / "small.engine"
    small.save(path)
    others = [copy.deepcopy(small), pickle.loads(pickle.dumps(small)), runtime.load(path, threads=2)]
    assert all(np.array_equal(other(given), small(given)) for other in others)


def test_what_is_unknown_runs_in_torch_and_is_named() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sort(self.a(x), 1)[0]) - x.mean(0)[:2]

    model = Sums().eval()
    engine = runtime.compile(model, torch.randn(2, 6))
    given = torch.randn(7, 6)
    assert torch.allclose(engine(given), model(given), atol=1e-5)
    told = str(engine.report(seconds=0.0))
    assert "aten.sort.default" in told and "aten.mean.dim" in told


def test_what_native_operators_refuse_runs_in_numpy_and_is_named() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3, padding=70000, dilation=70000), nn.ReLU()).eval()
    given = torch.randn(1, 1, 3)
    engine = runtime.compile(model, given)
    assert torch.allclose(engine(given), model(given), atol=1e-5)
    (alone,) = (part for part in engine.parts if isinstance(part, Alone))
    assert alone.node.op == "conv" and "less than 65536" in alone.why
    assert "not native" in str(engine.report(seconds=0.0))


def test_without_the_native_module_numpy_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    monkeypatch.setitem(sys.modules, "rewound.runtime._native", None)
    monkeypatch.delattr(runtime, "_native")
    monkeypatch.setattr(engine_module, "_told", False)
    with pytest.warns(RuntimeWarning, match="native module is not there"):
        engine = runtime.compile(model, torch.zeros(1, 4))
    runtime.compile(model, torch.zeros(1, 4))  # says it once
    given = torch.randn(3, 4)
    assert torch.allclose(engine(given), model(given), atol=1e-6)
    assert "no native module" in str(engine.report(seconds=0.0))


def test_the_native_module_is_here() -> None:
    """A build that failed would fall back to numpy, and every other test would pass."""
    assert _native.instruction_set() in _native.instruction_sets()


def test_torch_is_imported_for_tensors_alone(small: runtime.Engine, tmp_path: Path) -> None:
    path = tmp_path / "small.engine"
    small.save(path)
    code = (
        "import sys, numpy, rewound.runtime as runtime\n"
        "assert 'torch' not in sys.modules\n"
        f"engine = runtime.load({str(path)!r})\n"
        "assert engine(numpy.zeros((2, 3, 6, 6), numpy.float32)).shape == (2, 4)\n"
        "print(engine.report(seconds=0.0))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
