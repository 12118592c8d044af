"""Two processes that train together (gloo, CPU): equal masks on both, and the result of one process.

This file is the test and, started as a script, one rank of it: ``python test_distributed.py JOB RANK FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import rewound
from rewound.parameters import unwrap_model
from rewound.state import plain

T, STEPS = 3, 3
EXAMPLES = torch.randn(48, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = (EXAMPLES @ torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).double()).argmax(1)
TECHNIQUES = ("lr-rewinding", "weight-rewinding:2ep")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def build() -> nn.Module:
    """Odd sizes, so that shards are uneven."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def train(model, optimizer, part=slice(None), kill_at=None, **options):
    """A loop as a user of DDP writes it; ``part`` is this rank's share of each batch."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T * STEPS)
    run = rewound.Run(model, optimizer, epochs=T, scheduler=scheduler, until="2 rounds", **options)
    for epoch in run:
        order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch)).split(16)
        for i, chosen in enumerate(order):
            if (run.round, epoch, i) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(EXAMPLES[chosen[part]]), CLASSES[chosen[part]]).backward()
            if run.round:  # before the step already: clipping sees survivors only
                for name, p in unwrap_model(model).named_parameters():
                    grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                    assert name not in run.mask or not grad[~run.mask[name]].any()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            assert zeros_hold(run, model)
        with torch.no_grad():  # an evaluation, which leaves FSDP's parameters gathered
            accuracy = float((model(EXAMPLES).argmax(1) == CLASSES).double().mean())
        if not dist.is_initialized() or dist.get_rank() == 0:
            run.log(accuracy=accuracy)
    return run


def zeros_hold(run, model) -> bool:
    whole = full(model)
    return not any(bool(whole[name][~kept].any()) for name, kept in run.mask.items())


def full(model) -> dict[str, torch.Tensor]:
    state = unwrap_model(model).state_dict()
    return {n: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for n, t in state.items()}


class Looking(nn.Module):
    """Looks at values, so that shapes alone cannot run through it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) if x.abs().sum().item() > 0 else x


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02)


# ---- what a rank does ---------------------------------------------------------------------------------------------------


def ddp(rank: int, folder: Path) -> dict:
    """Both techniques without a folder; then one in a folder, killed in the middle of an epoch on both ranks."""
    found = {}
    for technique in TECHNIQUES:
        model = nn.parallel.DistributedDataParallel(build())
        run = train(model, sgd(model), slice(rank, None, 2), technique=technique)
        found[technique] = {
            "mask": run.mask.fingerprint,
            "weights": full(model),
            "lr": run.result.trace.lr.tolist(),
        }
    # only rank 0 logs, and what it logged decides on every rank
    model = nn.parallel.DistributedDataParallel(build())
    optimizer = sgd(model)
    stopping = rewound.Run(model, optimizer, epochs=1, until=("3 rounds", "accuracy drops 0.5"))
    for _ in stopping:
        optimizer.zero_grad()
        model(EXAMPLES).square().mean().backward()
        optimizer.step()
        if rank == 0:
            stopping.log(accuracy=0.9 - 0.3 * stopping.round)
    found["best"] = stopping.result.best
    found["logged"] = [r.metrics for r in stopping.result.rounds]
    found["refused"] = refusals(rank, folder / "refused")
    # a criterion that says something else on each rank: rank 0's mask is everybody's
    model = nn.parallel.DistributedDataParallel(build())
    chance = torch.Generator().manual_seed(rank)
    run = train(
        model, sgd(model), slice(rank, None, 2), technique="fine-tuning:1ep,lr=0.1",
        criterion=lambda evidence: {n: torch.rand(w.shape, generator=chance) for n, w in evidence.weights.items()},
    )  # fmt: skip
    found["by chance"] = run.mask.fingerprint
    torch.save(found, folder / f"ddp-{rank}.pt")
    model = nn.parallel.DistributedDataParallel(build())
    train(model, sgd(model), slice(rank, None, 2), kill_at=(1, 1, 1), folder=folder / "run")
    return {}


def refusals(rank: int, folder: Path) -> list[str]:
    """What one rank alone finds out stops all, and leaves none waiting."""
    import filelock

    def attempt(**options) -> str:
        model = nn.parallel.DistributedDataParallel(build())
        try:
            train(
                model,
                sgd(model),
                slice(rank, None, 2),
                technique="lr-rewinding:1ep",
                folder=folder,
                **options,
            )
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "finished"

    told = [attempt(), attempt(seed=4)]
    with filelock.FileLock(folder / ".lock-1") if rank else contextlib.nullcontext():
        dist.barrier()
        told.append(attempt())
        dist.barrier()
    return told


def ddp_again(rank: int, folder: Path) -> dict:
    torch.manual_seed(5)  # nothing but the folder brings the state back
    model = build()
    for p in model.parameters():
        nn.init.normal_(p)
    model = nn.parallel.DistributedDataParallel(model)
    run = train(model, sgd(model), slice(rank, None, 2), folder=folder / "run")
    return {
        "mask": run.mask.fingerprint,
        "weights": full(model),
        "epochs": [r.epochs for r in run.result.rounds],
    }


def fsdp(rank: int, folder: Path) -> dict:
    """FSDP2, the root holding parameters of its own; then stopped in the middle and gone on with in the same process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))

    def sharded():
        model = build()
        fully_shard(model[2], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    found = {}
    for technique in TECHNIQUES:
        model = sharded()
        run = train(model, adamw(model), slice(rank, None, 2), technique=technique, example=EXAMPLES[:8])
        cost = run.result.search_cost
        found[technique] = {
            "mask": run.mask.fingerprint,
            "weights": full(model),
            "flops": [cost.flops, cost.sparse_flops],
        }
    movement = rewound.watch_movement(adamw(model), model)
    movement.sums["0.weight"].to_local().fill_(1)
    kept = plain(movement.state_dict(), "movement")
    movement.sums["0.weight"].to_local().fill_(2)
    movement.load_state_dict(kept)
    found["movement"] = bool((movement.sums["0.weight"].to_local() == 1).all())
    looking = fully_shard(Looking(), mesh=mesh)
    with contextlib.suppress(ValueError):
        rewound.Run(looking, sgd(looking), epochs=1, until=0.5, example=EXAMPLES.float()[:8])
        found["looking"] = "counted"
    looking(EXAMPLES.float()[:8])  # and it still works
    for attempt in ("stopped", "gone on"):
        model = sharded()
        optimizer = adamw(model)
        run = rewound.Run(
            model, optimizer, epochs=T, technique=TECHNIQUES[1], until="2 rounds", folder=folder / "run"
        )
        for epoch in run:
            found.setdefault(attempt, []).append((run.round, epoch))
            if attempt == "stopped" and (run.round, epoch) == (2, 1):
                break
            model(EXAMPLES[rank::2]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found[attempt + " mask"] = run.mask.fingerprint
    state = optimizer.state[next(model.parameters())]["exp_avg"]
    found["sharded"] = type(state).__name__
    found["local"] = tuple(state.to_local().shape)
    return found


# ---- the tests ----------------------------------------------------------------------------------------------------------


def ranks(job: str, folder: Path) -> list[int]:
    """Start both ranks and return their exit codes."""
    rendezvous = folder / f"{job}.rendezvous"
    rendezvous.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, job, str(rank), str(folder)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert all(code in (0, -signal.SIGKILL) for code in codes), "\n".join(errors)
    return codes


def of_both(job: str, folder: Path) -> list[dict]:
    return [torch.load(folder / f"{job}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def one_process(technique: str, make) -> tuple[str, dict]:
    model = build()
    run = train(model, make(model), technique=technique)
    return run.mask.fingerprint, full(model)


@pytest.fixture(scope="module")
def ddp_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    assert ranks("ddp", folder) == [-signal.SIGKILL] * 2
    return folder, of_both("ddp", folder)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_ddp_has_equal_masks_and_the_result_of_one_process(ddp_results, technique):
    first, second = (found[technique] for found in ddp_results[1])
    fingerprint, weights = one_process(technique, sgd)
    assert first["mask"] == second["mask"] == fingerprint
    assert first["lr"] == second["lr"]
    for name, tensor in weights.items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-9, atol=1e-12)


def test_ddp_prunes_alike_where_each_rank_would_choose_otherwise(ddp_results):
    first, second = ddp_results[1]
    assert first["by chance"] == second["by chance"]


def test_ddp_stops_on_all_ranks_by_what_rank_0_logged(ddp_results):
    assert [found["best"] for found in ddp_results[1]] == [1, 1]
    assert all(
        [m["accuracy"] for m in found["logged"]] == [0.9, 0.9 - 0.3, 0.9 - 0.3 * 2]
        for found in ddp_results[1]
    )


def test_ddp_a_rank_that_is_refused_leaves_none_waiting(ddp_results):
    (_, first, alone), (_, second, locked) = (found["refused"] for found in ddp_results[1])
    assert first.startswith("ValueError: ")
    assert "seed: 0 -> 4" in first
    assert second.startswith("RuntimeError: this rank stops because another one failed (rank 0: ValueError")
    assert locked.startswith("RuntimeError: another process is working in")
    assert alone.startswith("RuntimeError: this rank stops because another one failed (rank 1: RuntimeError")
    assert {found["refused"][0] for found in ddp_results[1]} == {"finished"}


def test_ddp_killed_on_both_ranks_resumes_to_the_bit(ddp_results):
    folder, whole = ddp_results
    assert ranks("ddp_again", folder) == [0, 0]
    for found, expected in zip(of_both("ddp_again", folder), whole):
        assert found["epochs"] == [T] * 3
        assert found["mask"] == expected["lr-rewinding"]["mask"]
        for name, tensor in expected["lr-rewinding"]["weights"].items():
            assert torch.equal(found["weights"][name], tensor), name


def test_fsdp2_has_equal_masks_exact_zeros_and_a_state_for_each_rank(tmp_path):
    assert ranks("fsdp", tmp_path) == [0, 0]
    first, second = of_both("fsdp", tmp_path)
    for technique in TECHNIQUES:
        fingerprint, weights = one_process(technique, adamw)
        assert first[technique]["mask"] == second[technique]["mask"] == fingerprint
        for name, tensor in weights.items():
            torch.testing.assert_close(first[technique]["weights"][name], tensor, rtol=1e-7, atol=1e-10)
    whole = rewound.Run(alone := build(), sgd(alone), epochs=1, until=0.5, example=EXAMPLES[:8])
    steps = 3 * T * STEPS  # lr rewinding, two rounds
    for found in (first, second):
        assert found[TECHNIQUES[0]]["flops"][0] == steps * whole._step_flops()[0]
        assert 0.5 < found[TECHNIQUES[0]]["flops"][1] / found[TECHNIQUES[0]]["flops"][0] < 0.9
        assert found["movement"]
        assert "looking" not in found
    for found in (first, second):
        assert found["gone on"][-1] == (2, T - 1)
        assert found["gone on"][0] != (0, 0)
        assert found["stopped mask"] == found["gone on mask"] == first["gone on mask"]
        assert found["sharded"] == "DTensor"
    assert {first["local"], second["local"]} == {(5, 6), (4, 6)}
    assert (tmp_path / "run" / "state").is_dir()
    assert (tmp_path / "run" / "state-1").is_dir()


if __name__ == "__main__":
    job, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / job}.rendezvous", rank=rank, world_size=2)
    torch.save(
        {"ddp": ddp, "ddp_again": ddp_again, "fsdp": fsdp}[job](rank, folder), folder / f"{job}-{rank}.pt"
    )
    dist.barrier()
    dist.destroy_process_group()
    os._exit(
        0
    )  # the interpreter's own way out races with gloo's threads ("terminate called", once in a while)
