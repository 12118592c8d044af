"""How each runtime makes a file of a network, loads it and runs it. One entry of RUNTIMES each.

``make`` has torch and the module; ``load`` has the file alone, so that load time and memory can be measured in a process
that never saw the module (``fresh.py``). Both return a *bind*: given the inputs as arrays, it returns a call without
arguments, whose result is a list of arrays (or what numpy can look at).

All compute in float32: OpenVINO is asked to, which would choose bfloat16 by itself where the processor has it. Shapes are
fixed, which is what peers are fastest with: every batch size has a file of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

Arrays = Sequence[Any]  # numpy arrays
Bind = Callable[[Arrays], Callable[[], Sequence[Any]]]


@dataclass(frozen=True)
class Runtime:
    """needs: modules that must be there. suffix: of its file. make(module, inputs, threads, path): write the file and return
    a bind. load(path, threads): a bind. dense: it multiplies by zeros."""

    needs: tuple[str, ...]
    suffix: str
    make: Callable[[Any, tuple[Any, ...], int, Path], Bind]
    load: Callable[[Path, int], Bind]
    dense: bool = True

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if util.find_spec(name) is None]


def files_of(path: Path) -> list[Path]:
    """Return the files that a runtime made of a network: ``path``, and OpenVINO's weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


# ---- torch ---------------------------------------------------------------------------------------------------------


def _make_torch(module: Any, inputs: tuple[Any, ...], threads: int, path: Path) -> Bind:
    _export_torch(module, inputs, path)
    return _bind_torch(module)


def _load_torch(path: Path, threads: int) -> Bind:
    import torch

    torch.set_num_threads(threads)
    with quiet():
        return _bind_torch(torch.export.load(path).module())


def _make_compiled(module: Any, inputs: tuple[Any, ...], threads: int, path: Path) -> Bind:
    _export_torch(module, inputs, path)
    return _bind_torch(_compiled(module))


def _load_compiled(path: Path, threads: int) -> Bind:
    import torch

    torch.set_num_threads(threads)
    with quiet():
        return _bind_torch(_compiled(torch.export.load(path).module()))


def _export_torch(module: Any, inputs: tuple[Any, ...], path: Path) -> None:
    import torch

    if not path.is_file():
        with quiet(), torch.no_grad():
            torch.export.save(torch.export.export(module, inputs), path)


def _compiled(module: Any) -> Any:
    import torch

    return torch.compile(
        module, options={"freezing": True}
    )  # weights are constants, as in the other runtimes


def _bind_torch(module: Any) -> Bind:
    import torch

    def bind(arrays: Arrays) -> Callable[[], Sequence[Any]]:
        tensors = [torch.from_numpy(array) for array in arrays]

        def call() -> Sequence[Any]:
            with torch.no_grad():
                return module(*tensors)

        with quiet():
            call()  # torch.compile compiles at the first call, and warns as it does
        return call

    return bind


# ---- ONNX Runtime, OpenVINO ------------------------------------------------------------------------------------------


def _make_onnxruntime(module: Any, inputs: tuple[Any, ...], threads: int, path: Path) -> Bind:
    _export_onnx(module, inputs, path)
    return _load_onnxruntime(path, threads)


def _load_onnxruntime(path: Path, threads: int) -> Bind:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads spin for the next operator, and would go on into the turn of another runtime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [told.name for told in session.get_inputs()]

    def bind(arrays: Arrays) -> Callable[[], Sequence[Any]]:
        given = dict(zip(names, arrays, strict=True))
        return lambda: session.run(None, given)

    return bind


def _make_openvino(module: Any, inputs: tuple[Any, ...], threads: int, path: Path) -> Bind:
    import openvino

    _export_onnx(module, inputs, path.with_suffix(".onnx"))
    model = openvino.Core().read_model(path.with_suffix(".onnx"))
    openvino.save_model(model, path, compress_to_fp16=False)
    return _load_openvino(path, threads)


def _load_openvino(path: Path, threads: int) -> Bind:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the process is
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def bind(arrays: Arrays) -> Callable[[], Sequence[Any]]:
        given = dict(enumerate(arrays))

        def call() -> Sequence[Any]:
            return list(request.infer(given, share_inputs=True, share_outputs=True).values())

        return call

    return bind


def _export_onnx(module: Any, inputs: tuple[Any, ...], path: Path) -> None:
    import torch

    if not path.is_file():
        with quiet(), torch.no_grad():
            torch.onnx.export(module, inputs, str(path), dynamo=True, external_data=False, verbose=False)


# ---- the engine ------------------------------------------------------------------------------------------------------


def _make_engine(module: Any, inputs: tuple[Any, ...], threads: int, path: Path) -> Bind:
    import rewound.runtime

    with quiet():
        engine = rewound.runtime.compile(module, inputs, threads=threads)
    engine.save(path)
    return _bind_engine(engine)


def _load_engine(path: Path, threads: int) -> Bind:
    import rewound.runtime

    return _bind_engine(rewound.runtime.load(path, threads=threads))


def _bind_engine(engine: Any) -> Bind:
    def bind(arrays: Arrays) -> Callable[[], Sequence[Any]]:
        def call() -> Sequence[Any]:
            result = engine(*arrays)
            return result if isinstance(result, (tuple, list)) else (result,)

        return call

    return bind


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own insides, and print; nobody here can act on that."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


_ONNX = ("torch", "onnx", "onnxscript")
RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime(("torch",), ".pt2", _make_torch, _load_torch),
    "torch.compile": Runtime(("torch",), ".pt2", _make_compiled, _load_compiled),
    "onnxruntime": Runtime(("onnxruntime", *_ONNX), ".onnx", _make_onnxruntime, _load_onnxruntime),
    "openvino": Runtime(("openvino", *_ONNX), ".xml", _make_openvino, _load_openvino),
    "engine": Runtime((), ".engine", _make_engine, _load_engine, dense=False),
}
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "engine": "the engine"}  # in sentences
INSTALL = "pip install 'rewound[bench]'"
