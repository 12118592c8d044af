"""Is this machine ready? Versions, devices, extras, data, and five seconds of the real thing."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util
from typing import Any

EXTRAS = {
    "tasks": {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "PIL": "pillow"},
    "huggingface": {"transformers": "transformers", "accelerate": "accelerate"},
    "lightning": {"lightning": "lightning"},
    "translation": {"tokenizers": "tokenizers", "sacrebleu": "sacrebleu"},
    "report": {"matplotlib": "matplotlib", "jinja2": "Jinja2"},
    "dask": {"distributed": "distributed"},
    "slurm": {"submitit": "submitit"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "mlflow": {"mlflow": "mlflow"},
    "wandb": {"wandb": "wandb"},
    "bench": {n: n for n in ("onnxruntime", "onnx", "onnxscript", "openvino")},
}


def examine() -> dict[str, Any]:
    """Return what was found, as a plain dict; "healthy" is False where the self-check failed."""
    import torch

    checked = self_check()
    return {
        "rewound": _version("rewound"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        + (["mps"] if torch.backends.mps.is_available() else []),
        "extras": extras(),
        "data": data_sets(),
        "self_check": checked,
        "healthy": checked["passed"],
    }  # fmt: skip


def extras() -> dict[str, Any]:
    """Return extra -> packages with their versions, and the line that installs what is missing (or None)."""
    found = {}
    for extra, modules in EXTRAS.items():
        packages = {
            package: _version(package) if util.find_spec(m) else None for m, package in modules.items()
        }
        missing = not all(packages.values())
        found[extra] = {
            "packages": packages,
            "install": f"pip install 'rewound[{extra}]'" if missing else None,
        }
    return found


def data_sets() -> dict[str, str]:
    """Return task -> where its data were found, or what to get and where to put it. Large sets are not read."""
    from rewound.tasks import TASKS, load_task

    found = {}
    for name in TASKS:
        try:
            task = load_task(name)
            place = getattr(task, "place", None)
            if place is None:
                _ = task.steps_per_epoch  # reads what comes with scikit-learn
            found[name] = "found, with scikit-learn" if place is None else f"found in {place}"
        except (FileNotFoundError, ImportError) as error:
            found[name] = str(error).removeprefix(f"{name} is ")
    return found


def self_check() -> dict[str, Any]:
    """Prune a toy network and train it under guard: pruned weights must be exactly 0 after every step."""
    import torch

    from rewound.guarding import guard
    from rewound.pruning import prune

    torch_state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True
        )
        x = torch.randn(64, 8)
        y = (x[:, 0] > 0).long()

        def step() -> float:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        first = step()  # fills the momentum that would revive pruned weights
        mask = prune(model, 0.2)
        mask.apply_(model)
        guarded = guard(optimizer, model, mask)
        weights = dict(model.named_parameters())
        revived, last = 0, first
        for _ in range(30):
            last = step()
            revived += sum(int(weights[name][~kept].count_nonzero()) for name, kept in mask.items())
        guarded.check()
        guarded.remove()
    except Exception as error:  # whatever it is, the doctor reports it
        return {"passed": False, "says": f"{type(error).__name__}: {error}"}
    finally:
        torch.set_rng_state(torch_state)
    says = f"density {mask.density:.2f}, 30 steps, {revived} revived weights, loss {first:.3f} -> {last:.3f}"
    return {"passed": revived == 0 and last < first, "says": says}


def as_lines(found: dict[str, Any]) -> list[str]:
    """Set the findings for people."""
    lines = [
        f"rewound {found['rewound']}, torch {found['torch']}, Python {found['python']}, {found['platform']}"
    ]
    lines += [f"cores    {found['cores']} (torch uses {found['threads']} threads)"]
    lines += [f"devices  {', '.join(found['devices'])}"]
    for name, extra in found["extras"].items():
        there = ", ".join(f"{package} {version}" for package, version in extra["packages"].items() if version)
        missing = ", ".join(package for package, version in extra["packages"].items() if not version)
        lines.append(f"extra    {name}: {there or 'nothing there'}")
        if missing:
            lines.append(f"         missing: {missing}; {extra['install']}")
    lines += [f"data     {name}: {where}" for name, where in found["data"].items()]
    lines.append(f"check    {'passed' if found['healthy'] else 'FAILED'}: {found['self_check']['says']}")
    return lines


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
