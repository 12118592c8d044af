"""Anybody's loop: whatever a training loop does around the optimizer, recording, replay and zeros hold."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rewound
from rewound.parameters import parameters_by_name, unwrap_model, unwrap_optimizer

T, STEPS = 4, 3  # epochs of the original run, optimizer steps an epoch
EXAMPLES = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
CLASSES = (EXAMPLES @ torch.randn(6, 3, generator=torch.Generator().manual_seed(2))).argmax(1)


def batches(epoch: int, size: int = 16):
    """The order is a function of the epoch."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch))
    return [(EXAMPLES[i], CLASSES[i]) for i in order.split(size)]


def build(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(dropout), nn.Linear(10, 3)
    )


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3, nesterov=True)


def step(model, optimizer, batch) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


def plain(run, model, optimizer, each_step=lambda: None, each_epoch=lambda: None, stop_before=None) -> None:
    for epoch in run:
        if (run.round, epoch) == stop_before:
            return
        for batch in batches(epoch):
            loss = step(model, optimizer, batch)
            each_step()
        each_epoch()
        run.log(loss=loss)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in unwrap_model(model).state_dict().items()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_zeros(run, model) -> None:
    parameters = parameters_by_name(model)
    assert run.round == 0 or run.mask.density < 1
    for name, kept in run.mask.items():
        assert not parameters[name][~kept].any(), name


# ---- plain, accumulation, groups ------------------------------------------------------------------------------------


def test_plain_loop_keeps_the_users_own_objects():
    model = build()
    optimizer, keys = sgd(model), list(model.state_dict())
    ids = [id(p) for p in model.parameters()]
    run = rewound.Run(model, optimizer, epochs=T, until="3 rounds")
    plain(run, model, optimizer, each_step=lambda: assert_zeros(run, model))
    assert [r.kept for r in run.result.rounds] == [90, 72, 58, 46]
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == ids
    assert [id(p) for p in model.parameters()] == ids
    assert list(model.state_dict()) == keys


def test_gradient_accumulation_counts_optimizer_steps_and_equals_the_whole_batch():
    norm_free = [nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double() for _ in range(2)]
    norm_free[1].load_state_dict(norm_free[0].state_dict())
    runs = []
    for parts, model in zip((1, 4), norm_free):
        optimizer = sgd(model)
        run = rewound.Run(model, optimizer, epochs=T, until="2 rounds")
        for epoch in run:
            for x, y in batches(epoch):
                optimizer.zero_grad()
                for xs, ys in zip(x.double().chunk(parts), y.chunk(parts)):
                    (nn.functional.cross_entropy(model(xs), ys) / parts).backward()
                    if run.round:  # masked after each micro-batch, not only before the step
                        assert not model[0].weight.grad[~run.mask["0.weight"]].any()
                optimizer.step()
                assert_zeros(run, model)
        runs.append(run)
    assert [r.steps for r in runs[1].result.rounds] == [T * STEPS] * 3
    assert runs[0].mask.fingerprint == runs[1].mask.fingerprint
    for a, b in zip(*(m.parameters() for m in norm_free)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_group_replays_its_own_lr_and_weight_decay():
    model = build()
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.01, "weight_decay": 0.1},
            {"params": model[1].parameters(), "weight_decay": 0.0},
            {"params": model[4].parameters(), "lr": 0.03},
        ],
        lr=0.02,
    )
    scheduler = schedules.ExponentialLR(optimizer, 0.9)
    run = rewound.Run(
        model, optimizer, epochs=T, scheduler=scheduler, technique="lr-rewinding:2ep", until="1 round"
    )
    plain(run, model, optimizer, each_step=scheduler.step)
    trace = run.result.trace
    decay = 0.9 ** np.arange(T * STEPS)
    np.testing.assert_allclose(trace.lr[: T * STEPS], np.outer(decay, [0.01, 0.02, 0.03]))
    np.testing.assert_array_equal(trace.lr[T * STEPS :], trace.lr[2 * STEPS : T * STEPS])
    assert trace.of("weight_decay")[-1].tolist() == [0.1, 0.0, 0.01]


# ---- mixed precision --------------------------------------------------------------------------------------------------


def scaled_step(model, optimizer, scaler, batch, factor=1.0) -> bool:
    """One step with autocast and a scaler; return whether the optimizer stepped."""
    taken = []
    handle = optimizer.register_step_post_hook(lambda *_: taken.append(1))
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1]) * factor
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    handle.remove()
    return bool(taken)


def test_a_step_that_the_scaler_skips_shifts_no_other_epoch():
    model = build()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    lr = {"step": 0}
    run = rewound.Run(model, optimizer, epochs=T, until="1 round", extras=[scaler])
    used: dict[tuple[int, int], list[float]] = {}
    skips = {(0, 1, 1), (1, 0, 2)}  # round, epoch, batch: another epoch in each round
    for epoch in run:
        rows = used.setdefault((run.round, epoch), [])
        for i, batch in enumerate(batches(epoch)):
            lr["step"] += 1
            if run.round == 0:
                optimizer.param_groups[0]["lr"] = 0.1 / lr["step"]  # a schedule by hand, before the step
            skip = (run.round, epoch, i) in skips
            assert scaled_step(model, optimizer, scaler, batch, float("inf") if skip else 1.0) is not skip
            if not skip:
                rows.append(optimizer.param_groups[0]["lr"])
            assert_zeros(run, model)
    assert [r.steps for r in run.result.rounds] == [T * STEPS - 1] * 2
    assert scaler.get_scale() == 2.0**8  # it did back off, twice
    assert used[1, 0] == used[0, 0][:2]
    assert used[1, 1] == [
        *used[0, 1],
        used[0, 1][-1],
    ]  # a longer epoch holds the last row of the recorded one
    assert used[1, 2] == used[0, 2]
    assert used[1, 3] == used[0, 3]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_infinite_gradients_under_pruned_weights_skip_nothing(poison):
    model = build()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    run = rewound.Run(model, optimizer, epochs=2, until=0.5, rate=None)
    handles = []
    for epoch in run:
        if run.round and not handles:
            handles.append(
                model[0].weight.register_hook(lambda g: g.masked_fill(~run.mask["0.weight"], poison))
            )
        assert all(scaled_step(model, optimizer, scaler, batch) for batch in batches(epoch))
        assert_zeros(run, model)
    assert handles
    assert scaler.get_scale() == 4.0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_clipping_by_norm_sees_survivors_only():
    model = build()
    optimizer = sgd(model)
    run = rewound.Run(model, optimizer, epochs=1, until=0.3, rate=None)
    for epoch in run:
        for x, y in batches(epoch):
            raw = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            found = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            kept = [run.mask.get(name) for name, _ in model.named_parameters()]
            survivors = torch.cat([(g if k is None else g[k]).flatten() for g, k in zip(raw, kept)])
            torch.testing.assert_close(found, survivors.norm())
            if run.round:
                assert found < torch.cat([g.flatten() for g in raw]).norm() * 0.999
            optimizer.step()


# ---- schedules ----------------------------------------------------------------------------------------------------------


def _warm_up_and_steps(optimizer):
    warm = schedules.LinearLR(
        optimizer, 0.1, total_iters=5
    )  # ends inside an epoch: the seam is no epoch's edge
    steps = schedules.MultiStepLR(optimizer, [2, 4], gamma=0.3)
    return schedules.SequentialLR(optimizer, [warm, steps], milestones=[5])


def _restarts_then_decay(optimizer):
    parts = [schedules.CosineAnnealingWarmRestarts(optimizer, 4), schedules.ExponentialLR(optimizer, 0.97)]
    return schedules.ChainedScheduler(parts)


# name -> (scheduler of an optimizer, when it steps)
SCHEDULES = {
    "constant": (lambda o: None, "never"),
    "step decay": (lambda o: schedules.MultiStepLR(o, [2, 3], gamma=0.1), "epoch"),
    "cosine": (lambda o: schedules.CosineAnnealingLR(o, T * STEPS), "step"),
    "one-cycle": (lambda o: schedules.OneCycleLR(o, 0.2, total_steps=T * STEPS), "step"),
    "warm-up and steps": (_warm_up_and_steps, "step"),
    "warm-up by lambda": (lambda o: schedules.LambdaLR(o, lambda s: min(1.0, (s + 1) / 5) * 0.9**s), "step"),
    "chained": (_restarts_then_decay, "step"),
    "plateau": (lambda o: schedules.ReduceLROnPlateau(o, factor=0.5, patience=0), "loss"),
    "by hand": (lambda o: None, "by hand"),
}


@pytest.mark.parametrize(
    "technique", ["lr-rewinding", "lr-rewinding:1ep", "lr-rewinding:3ep", "weight-rewinding:2ep"]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_replay_is_the_recordings_slice(name, technique):
    make, when = SCHEDULES[name]
    model = build()
    optimizer = sgd(model)
    scheduler = make(optimizer)
    run = rewound.Run(model, optimizer, epochs=T, scheduler=scheduler, technique=technique, until="2 rounds")
    used: dict[int, list] = {}

    def note(optimizer, args, kwargs):
        used.setdefault(run.round, []).append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])

    rising = iter(range(1000))
    for epoch in run:
        handle = optimizer.register_step_pre_hook(
            note
        )  # after the run's own: it reads what the step will use
        for i, batch in enumerate(batches(epoch)):
            if when == "by hand":
                optimizer.param_groups[0]["lr"] = 0.1 / (1 + epoch * STEPS + i) ** 0.5
            step(model, optimizer, batch)
            if when == "step":
                scheduler.step()
        handle.remove()
        if when == "epoch":
            scheduler.step()
        if when == "loss":
            scheduler.step(next(rising))  # worse every time: it reduces at every epoch but the first
    t = run.technique.length(T)
    assert [len(rows) for rows in used.values()] == [T * STEPS, t * STEPS, t * STEPS]
    if name != "constant":
        assert len({row[0][0] for row in used[0]}) > 2
    assert used[1] == used[2] == used[0][(T - t) * STEPS :]
    np.testing.assert_array_equal(
        run.result.trace.lr[:, 0], [row[0][0] for rows in used.values() for row in rows]
    )


def _final(technique: str) -> dict[str, torch.Tensor]:
    model = build(dropout=0.2)
    optimizer = sgd(model)
    scheduler = schedules.MultiStepLR(optimizer, [2], gamma=0.1)
    run = rewound.Run(model, optimizer, epochs=T, scheduler=scheduler, technique=technique, until="2 rounds")
    plain(run, model, optimizer, each_epoch=scheduler.step)
    return weights(model)


def test_lr_rewinding_is_fine_tuning_within_the_last_constant_piece():
    for t in (1, 2):
        assert_same(_final(f"lr-rewinding:{t}ep"), _final(f"fine-tuning:{t}ep"))
    assert not torch.equal(_final("lr-rewinding:3ep")["0.weight"], _final("fine-tuning:3ep")["0.weight"])


def test_an_epoch_of_another_length_is_said_once():
    model = build()
    optimizer = sgd(model)
    run = rewound.Run(model, optimizer, epochs=2, until="1 round")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in run:
            for batch in batches(epoch, size=16 if run.round == 0 else 8):
                step(model, optimizer, batch)
    assert len(caught) == 1
    assert "took 6 steps in round 1 and 3 in the original run" in str(caught[0].message)


def test_what_cannot_be_counted_or_logged_is_said_early_and_plainly():
    model = build()
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size mismatch"):
        rewound.Run(model, sgd(model), epochs=1, until=0.5, example=torch.zeros(2, 7))
    run = rewound.Run(model, sgd(model), epochs=1, until=0.5)
    with pytest.raises(RuntimeError, match="inside 'for epoch in run'"):
        run.log(loss=1.0)
    for _ in run:
        run.log(
            loss=torch.zeros(1, requires_grad=True).sum()
        )  # torch would warn of the graph that it carries
        with pytest.raises(TypeError, match="metric 'loss' must be a number"):
            run.log(loss=torch.zeros(2))
        break


# ---- wrapped models, copies, rebuilt optimizers -------------------------------------------------------------------------


def test_compiled_model_equals_the_eager_one():
    eager = build()
    optimizer = sgd(eager)
    reference = rewound.Run(eager, optimizer, epochs=2, until="2 rounds")
    plain(reference, eager, optimizer)
    model = build()
    compiled = torch.compile(
        model, backend="aot_eager"
    )  # the hooks see what inductor shows them, without its C++ build
    optimizer = sgd(model)
    run = rewound.Run(compiled, optimizer, epochs=2, until="2 rounds")
    for epoch in run:
        for batch in batches(epoch):
            step(compiled, optimizer, batch)
            assert_zeros(run, compiled)
    assert list(run.mask) == ["0.weight", "4.weight"]
    assert run.mask.fingerprint == reference.mask.fingerprint
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, eager.state_dict()[name], rtol=1e-5, atol=1e-7)


class Wrapper(nn.Module):
    """An EMA in the manner of timm: a copy under another name, updated by hand."""

    def __init__(self, model):
        super().__init__()
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update_parameters(self, model):
        for mine, theirs in zip(self.module.parameters(), model.parameters()):
            mine.lerp_(theirs, 0.1)


AVERAGES = {
    "EMA": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "SWA": AveragedModel,
    "timm": Wrapper,
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("technique", ["lr-rewinding", "weight-rewinding:2ep"])
def test_averages_obey_the_mask_and_resume(kind, technique, tmp_path):
    def start(folder, seed=0):
        model = build(seed, dropout=0.2)
        average = AVERAGES[kind](model)
        optimizer = sgd(model)
        run = rewound.Run(
            model, optimizer, epochs=T, technique=technique, until="2 rounds", extras=[average], folder=folder
        )

        def obeys():
            average.update_parameters(model)
            for name, kept in run.mask.items():
                assert not dict(average.module.named_parameters())[name][~kept].any()

        return run, model, optimizer, obeys, average

    run, model, optimizer, obeys, average = start(tmp_path / "whole")
    plain(run, model, optimizer, each_step=obeys)
    assert run.density < 0.7
    run, model, optimizer, obeys, _ = start(tmp_path / "parts")
    plain(run, model, optimizer, each_step=obeys, stop_before=(1, 3))
    run, model, optimizer, obeys, resumed = start(tmp_path / "parts", seed=7)  # all comes from the folder
    plain(run, model, optimizer, each_step=obeys)
    assert_same(average.state_dict(), resumed.state_dict())


def test_a_module_among_the_extras_that_is_no_copy_is_let_alone():
    model = build()
    loss_weights = nn.Linear(2, 2)
    before = weights(loss_weights)
    optimizer = sgd(model)
    run = rewound.Run(model, optimizer, epochs=1, until="1 round", extras=[loss_weights])
    plain(run, model, optimizer)
    assert_same(before, weights(loss_weights))


def test_a_loop_that_rebuilds_its_optimizer_hands_it_over():
    model = build()
    optimizer = sgd(model)
    run = rewound.Run(model, optimizer, epochs=2, until="2 rounds")
    seen = set()
    for epoch in run:
        if run.round not in seen:
            seen.add(run.round)
            optimizer = sgd(model, lr=0.05)
            run.attach(optimizer)
        for batch in batches(epoch):
            step(model, optimizer, batch)
            assert_zeros(run, model)
    assert run.result.trace.lr.tolist() == [[0.05]] * (3 * 2 * STEPS)

    model = build()
    run = rewound.Run(model, sgd(model), epochs=1, until="1 round")
    other = sgd(model)
    with pytest.raises(RuntimeError, match=r"no step of the SGD .* run\.attach\(optimizer\)"):
        plain(run, model, other)


# ---- other people's launchers -------------------------------------------------------------------------------------------


def _reference(accumulate: int) -> tuple[dict[str, torch.Tensor], list[float], str]:
    model = build()
    optimizer = sgd(model)
    scheduler = schedules.CosineAnnealingLR(optimizer, T * STEPS)
    run = rewound.Run(
        model, optimizer, epochs=T, scheduler=scheduler, technique="lr-rewinding:2ep", until="2 rounds"
    )
    for epoch in run:
        optimizer.zero_grad()
        for i, (x, y) in enumerate(batches(epoch, size=16 // accumulate)):
            (nn.functional.cross_entropy(model(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return weights(model), run.result.trace.lr[:, 0].tolist(), run.mask.fingerprint


def test_accelerate_with_accumulation_equals_the_plain_loop():
    accelerate = pytest.importorskip("accelerate", reason="needs the extra 'huggingface'")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = build()
    optimizer = sgd(model)
    scheduler = schedules.CosineAnnealingLR(optimizer, T * STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    run = rewound.Run(
        model, optimizer, epochs=T, scheduler=scheduler, technique="lr-rewinding:2ep", until="2 rounds"
    )
    for epoch in run:
        for x, y in batches(epoch, size=8):
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        assert_zeros(run, model)
    final, lr, fingerprint = _reference(accumulate=2)
    assert run.mask.fingerprint == fingerprint
    assert run.result.trace.lr[:, 0].tolist() == lr
    assert_same(weights(model), final)


def test_fabric_equals_the_plain_loop():
    fabric_module = pytest.importorskip("lightning.fabric", reason="needs the extra 'lightning'")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    model = build()
    model, optimizer = fabric.setup(model, sgd(model))
    scheduler = schedules.CosineAnnealingLR(unwrap_optimizer(optimizer), T * STEPS)
    run = rewound.Run(
        model, optimizer, epochs=T, scheduler=scheduler, technique="lr-rewinding:2ep", until="2 rounds"
    )
    for epoch in run:
        for x, y in batches(epoch):
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            scheduler.step()
        assert_zeros(run, model)
    final, lr, fingerprint = _reference(accumulate=1)
    assert run.mask.fingerprint == fingerprint
    assert run.result.trace.lr[:, 0].tolist() == lr
    assert_same(weights(model), final)
