"""Algorithm 1 in the user's loop: the identities that make it that algorithm and no other."""

import copy
import gc
import json
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import rewound
from rewound.run import Run

T, STEPS = 6, 5  # epochs of the original run, steps an epoch


def network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def make(**options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3 * STEPS, 5 * STEPS])
    options = {"epochs": T, "until": "3 rounds", "scheduler": scheduler, **options}
    return model, optimizer, scheduler, Run(model, optimizer, **options)


def train(model, optimizer, scheduler, epoch=None):
    """Data from the global generator, as most people's loaders have it, unless the epoch seeds it."""
    generator = None if epoch is None else torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        x = torch.randn(8, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
        scheduler.step()


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def go(model, optimizer, scheduler, run, seeded=False, each=lambda epoch: None):
    torch.manual_seed(1)
    for epoch in run:
        train(model, optimizer, scheduler, epoch if seeded else None)
        run.log(norm=model[0].weight.detach().norm())
        each(epoch)
    return run.result


def test_epochs_rewind():
    model, optimizer, scheduler, run = make(technique="lr-rewinding:2ep", until="2 rounds")
    seen = []
    go(model, optimizer, scheduler, run, each=lambda e: seen.append((run.round, e)))
    assert seen == [(0, e) for e in range(T)] + [(1, 4), (1, 5), (2, 4), (2, 5)]


@pytest.mark.parametrize("t", [0, 1, 3, T])
def test_weight_rewinding_with_a_full_mask_is_the_original_run_to_the_bit(t):
    """The identity of the method: dropout, data order, momentum, batch norm and schedule all rewind."""
    model, optimizer, scheduler, run = make(technique=f"weight-rewinding:{t}ep", rate=0, until="2 rounds")
    ends = {}
    result = go(
        model, optimizer, scheduler, run, each=lambda e: ends.__setitem__((run.round, e), weights(model))
    )
    for k in range(1, 3):
        for epoch in range(T - t, T):
            assert same(ends[k, epoch], ends[0, epoch])
    assert same(weights(model), ends[0, T - 1])
    np.testing.assert_array_equal(
        result.trace.values[T * STEPS :], np.tile(result.trace.values[(T - t) * STEPS : T * STEPS], (2, 1, 1))
    )
    assert [r.log[-1] for r in result.rounds if r.log] == [result.rounds[0].log[-1]] * (3 if t else 1)


def test_the_run_leaves_the_original_training_alone():
    """Round 0 is the user's own loop to the bit: recording changes nothing."""
    model, optimizer, scheduler, run = make()
    ends = []
    go(model, optimizer, scheduler, run, each=lambda e: ends.append(weights(model)))
    plain_model = network()
    plain = torch.optim.SGD(plain_model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    plain_scheduler = torch.optim.lr_scheduler.MultiStepLR(plain, [3 * STEPS, 5 * STEPS])
    torch.manual_seed(1)
    for _ in range(T):
        train(plain_model, plain, plain_scheduler)
    assert same(weights(plain_model), ends[T - 1])


def test_weights_rewind_to_the_original_run_in_every_round():
    """Decision 3 and trap 16: survivors at round 3 start from the ORIGINAL run's weights, buffers and momentum."""
    model, optimizer, scheduler, run = make(technique="weight-rewinding:4ep")
    original, slots = {}, {}

    def each(epoch):
        if run.round == 0 and epoch == 1:
            original.update(weights(model))
            slots.update(
                {i: optimizer.state[p]["momentum_buffer"].clone() for i, p in enumerate(model.parameters())}
            )

    starts = []
    torch.manual_seed(1)
    for epoch in run:
        if run.round and epoch == T - 4:
            starts.append(
                (weights(model), [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()])
            )
        train(model, optimizer, scheduler)
        run.log(x=0)
        each(epoch)
    masks = [torch.ones(16, 6, dtype=torch.bool)]
    for start, momentum in starts:
        for name, value in original.items():
            kept = (
                start[name] != 0
                if name in ("0.weight", "4.weight")
                else torch.ones_like(value, dtype=torch.bool)
            )
            assert torch.equal(start[name], torch.where(kept, value, 0))  # traps 7 and 16: buffers too
        kept = start["0.weight"] != 0
        assert bool((kept <= masks[-1]).all())
        masks.append(kept)
        assert torch.equal(momentum[0], torch.where(kept, slots[0], 0))  # trap 4
    assert len(starts) == 3


def test_fine_tuning_and_lr_rewinding_go_on_from_the_end_of_the_previous_round():
    for technique in ("fine-tuning:2ep", "lr-rewinding:2ep"):
        model, optimizer, scheduler, run = make(technique=technique)
        end, momentum = {}, {}
        torch.manual_seed(1)
        for epoch in run:
            if run.round and epoch == T - 2:
                for name, value in end.items():
                    kept = run.mask[name] if name in run.mask else torch.ones_like(value, dtype=torch.bool)
                    assert torch.equal(model.state_dict()[name], torch.where(kept, value, 0))
                carried = optimizer.state[model[0].weight]["momentum_buffer"]
                assert torch.equal(carried, torch.where(run.mask["0.weight"], momentum["0"], 0))
            train(model, optimizer, scheduler)
            end, momentum = weights(model), {"0": optimizer.state[model[0].weight]["momentum_buffer"].clone()}


@pytest.mark.parametrize(
    ("text", "momentum"), [("lr-rewinding:2ep,fresh", "fresh"), ("lr-rewinding:2ep,rewound", "rewound")]
)
def test_optimizer_state_by_option(text, momentum):
    """Trap 4: carried, rewound or fresh, as told."""
    model, optimizer, scheduler, run = make(technique=text, until="1 rounds")
    kept = None
    torch.manual_seed(1)
    for epoch in run:
        if run.round == 0 and epoch == T - 2:
            kept = optimizer.state[model[0].weight]["momentum_buffer"].clone()
        if run.round == 1 and epoch == T - 2:
            if momentum == "fresh":
                assert not optimizer.state
            else:
                expected = torch.where(run.mask["0.weight"], kept, 0)
                assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], expected)
        train(model, optimizer, scheduler)


@pytest.mark.parametrize("t", [1, 2, 3, 4, T])
def test_the_replayed_lr_is_the_slice_of_the_recording(t):
    model, optimizer, scheduler, run = make(technique=f"lr-rewinding:{t}ep", until="2 rounds")
    trace = go(model, optimizer, scheduler, run).trace
    n = T * STEPS
    for k in range(2):
        part = trace.values[n + k * t * STEPS : n + (k + 1) * t * STEPS]
        np.testing.assert_array_equal(part, trace.values[n - t * STEPS : n])


def test_lr_rewinding_equals_fine_tuning_within_the_last_constant_piece():
    """To the bit, with seeded data: the last piece of this schedule is one epoch long."""
    ends = {}
    for technique in ("lr-rewinding:1ep", "fine-tuning:1ep", "lr-rewinding:2ep", "fine-tuning:2ep"):
        model, optimizer, scheduler, run = make(technique=technique)
        go(model, optimizer, scheduler, run, seeded=True)
        ends[technique] = weights(model)
    assert same(ends["lr-rewinding:1ep"], ends["fine-tuning:1ep"])
    assert not same(ends["lr-rewinding:2ep"], ends["fine-tuning:2ep"])


@pytest.mark.parametrize("t", [0])
@pytest.mark.parametrize("technique", ["weight-rewinding", "lr-rewinding", "fine-tuning"])
def test_no_retraining_only_prunes(technique, t):
    """Trap 6: WR(0) = LRR(0) = pruning."""
    model, optimizer, scheduler, run = make(technique=f"{technique}:{t}ep", until=0.5, rate=None)
    end = {}
    go(model, optimizer, scheduler, run, each=lambda e: end.update(weights(model)))
    mask = run.mask
    for name, value in end.items():
        kept = mask[name] if name in mask else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(model.state_dict()[name], torch.where(kept, value, 0))
    assert mask.density == 0.5


OTHER_CELLS = (
    "reinitialization lottery-ticket low-lr-weight-rewinding scaled-restart cyclic-restart linear-restart "
    "adaptive-linear-restart freshxcyclic"
)


@pytest.mark.parametrize("technique", OTHER_CELLS.split())
def test_every_other_cell_runs(technique):
    model, optimizer, scheduler, run = make(technique=technique, until=0.3)
    initial = weights(model)
    starts = []
    torch.manual_seed(1)
    for epoch in run:
        if run.round and epoch == T - run.plan.retrain_epochs:
            starts.append(weights(model))
        train(model, optimizer, scheduler)
    assert run.result.rounds[-1].kept == round(0.3 * 144)
    kept = run.mask["0.weight"]
    if technique == "lottery-ticket":
        assert torch.equal(starts[-1]["0.weight"], torch.where(kept, initial["0.weight"], 0))
    if technique in ("reinitialization", "freshxcyclic"):
        assert not torch.equal(starts[-1]["0.weight"], torch.where(kept, initial["0.weight"], 0))
        assert not torch.equal(
            starts[-1]["0.weight"][kept], starts[-2]["0.weight"][kept]
        )  # another draw every round
        assert starts[-1]["1.running_mean"].count_nonzero() == 0
    if technique == "adaptive-linear-restart":
        lr = run.result.trace.lr[:, 0]
        assert lr[T * STEPS :].max() <= 0.1 + 1e-12


def test_masks_are_nested_counts_exact_and_zeros_hold_in_every_epoch():
    model, optimizer, scheduler, run = make(until=0.1)
    masks = []

    def each(epoch):
        zeros = sum(int((model.state_dict()[n] == 0).sum()) for n in ("0.weight", "4.weight"))
        assert zeros >= 144 - run.mask.kept
        assert not any(model.state_dict()[n][~m].any() for n, m in run.mask.items())
        if epoch == T - 1:
            masks.append(run.mask)

    result = go(model, optimizer, scheduler, run, each=each)
    survivors = 144
    for previous, mask, r in zip(masks, masks[1:], result.rounds[1:]):
        assert mask <= previous
        expected = survivors - round(0.2 * survivors)
        assert r.kept == mask.kept == (expected if r.index < run.plan.rounds else round(0.1 * 144))
        survivors = r.kept
        assert sum(round(d * run.mask[n].numel()) for n, d in r.densities.items()) == r.kept  # trap 10
    biases_and_norms = 16 + 16 + 16 + 3
    assert result.rounds[-1].density_total == (r.kept + biases_and_norms) / (144 + biases_and_norms)


def test_result_cost_and_json():
    """Trap 29: search cost in epochs, steps and FLOPs of everything trained."""
    model, optimizer, scheduler, run = make(
        technique="lr-rewinding:2ep",
        example=torch.randn(8, 6),
        evaluate=lambda m: {"norm": m[0].weight.detach().norm()},
    )
    result = go(model, optimizer, scheduler, run)
    cost = result.search_cost
    assert (cost.epochs, cost.steps) == (T + 3 * 2, (T + 3 * 2) * STEPS)
    dense_forward = 2 * 8 * (6 * 16 + 16 * 3)
    assert cost.flops == 3 * dense_forward * cost.steps
    assert cost.sparse_flops < cost.flops
    assert result.rounds[0].sparse_flops == result.rounds[0].flops
    assert set(result.rounds[1].before) == {"norm"}
    assert result.rounds[1].before["norm"] < result.rounds[0].metrics["norm"]
    again = json.loads(json.dumps(result.to_dict()))
    assert again["rounds"][3]["density"] == result.rounds[3].density
    assert "search cost 12 epochs" in str(result)


def test_a_metric_stops_the_run_and_the_last_good_round_comes_back():
    values = {0: 0.9, 1: 0.895, 2: 0.7}
    for folder in (None, True):
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            model, optimizer, scheduler, run = make(
                until=("accuracy drops 0.01", 0.05),
                technique="lr-rewinding:1ep",
                folder=place if folder else None,
            )
            ends = {}
            torch.manual_seed(1)
            for _ in run:
                train(model, optimizer, scheduler)
                run.log(accuracy=values[run.round])
                ends[run.round] = weights(model)
            assert [r.index for r in run.result.rounds] == [0, 1, 2]
            assert run.result.best == 1
            assert "accuracy 0.7 in round 2, 0.9 in the original run" in run.result.stopped
            assert same(weights(model), ends[1])
            assert run.mask.kept == run.result.rounds[1].kept
            # the search cost has the discarded round too
            assert run.result.search_cost.epochs == run.plan.epochs + 2
            assert run.result.search_cost.steps == sum(r.steps for r in run.result.rounds)
            train(model, optimizer, scheduler)  # and its zeros go on to hold
            run.guard.check()


def test_a_metric_that_was_not_logged_is_named():
    model, optimizer, scheduler, run = make(until="acc drops 0.01")
    with pytest.raises(
        ValueError, match=r"stops by 'acc', which was not logged for the original run; logged: norm"
    ):
        go(model, optimizer, scheduler, run)
    assert run.round == 0  # and before a round is trained in vain


def test_after_the_last_round_zeros_still_hold():
    model, optimizer, scheduler, run = make()
    go(model, optimizer, scheduler, run)
    train(model, optimizer, scheduler)
    assert not any(model.state_dict()[n][~m].any() for n, m in run.mask.items())


def test_layer_collapse_is_said():
    """Trap 14."""
    model, optimizer, scheduler, run = make(rate=None, until=0.3)
    with torch.no_grad():
        model[4].weight.mul_(1e-4)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    scheduler.base_lrs = [0.0]
    for group in optimizer.param_groups:
        group["lr"] = 1e-9
    run = Run(model, optimizer, epochs=1, technique="lr-rewinding", rate=None, until=0.3)
    with pytest.warns(UserWarning, match=r"round 1: nothing survives in 4.weight \(layer collapse\)"):
        for _ in run:
            train(model, optimizer, scheduler)
    assert run.result.rounds[1].collapsed == ("4.weight",)
    assert "nothing survives in 4.weight" in str(run.result)


def test_attach_hands_over_to_a_rebuilt_optimizer():
    model, optimizer, scheduler, run = make(technique="lr-rewinding:3ep")
    torch.manual_seed(1)
    for _ in run:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3 * STEPS, 5 * STEPS])
        run.attach(optimizer, scheduler)
        train(model, optimizer, scheduler)
    assert not any(model.state_dict()[n][~m].any() for n, m in run.mask.items())
    trace = run.result.trace
    np.testing.assert_array_equal(trace.lr[T * STEPS :][: 3 * STEPS], trace.lr[3 * STEPS : T * STEPS])


def test_an_optimizer_that_never_steps_is_named():
    model, optimizer, scheduler, run = make()
    with pytest.raises(
        RuntimeError,
        match=r"no step of the SGD given to this Run was seen in epoch 0; .*run.attach.*GradScaler",
    ):
        for _ in run:
            other = torch.optim.SGD(model.parameters(), lr=0.1)
            train(model, other, torch.optim.lr_scheduler.StepLR(other, 5))


def test_a_weight_that_comes_back_during_a_run_is_found():
    model, optimizer, scheduler, run = make(until="1 rounds")
    with pytest.raises(RuntimeError, match=r"pruned weights of '0.weight' are not zero"):
        for _ in run:
            train(model, optimizer, scheduler)
            if run.round:
                with torch.no_grad():
                    model[0].weight.add_(1)


def test_another_number_of_steps_is_said_once():
    model, optimizer, scheduler, run = make(technique="lr-rewinding:3ep")
    with pytest.warns(
        UserWarning, match="epoch 3 took 10 steps in round 1 and 5 in the original run"
    ) as caught:
        for _ in run:
            train(model, optimizer, scheduler)
            if run.round:
                train(model, optimizer, scheduler)
    assert len([w for w in caught if "took 10 steps" in str(w.message)]) == 1


class TestModelsWithoutAHistory:
    """Decision 11."""

    def test_can_be_fine_tuned_at_the_optimizers_own_lr(self):
        model, optimizer, scheduler, run = make(pretrained=True, technique="fine-tuning:2ep", until="2 rounds",
                                                evaluate=lambda m: {"norm": float(m[0].weight.detach().norm())})  # fmt: skip
        seen = []
        result = go(model, optimizer, scheduler, run, each=lambda e: seen.append(e))
        assert seen == [4, 5, 4, 5]
        assert (result.trace.lr == 0.1).all()
        assert result.search_cost.epochs == 4
        assert result.rounds[0].epochs == 0
        assert set(result.rounds[0].metrics) == {"norm"}

    def test_can_rewind_a_schedule_that_is_given(self):
        history = rewound.Trace.from_schedule(lambda s: 0.1 / (s + 1), epochs=T, steps_per_epoch=STEPS)
        model, optimizer, scheduler, run = make(
            history=history, technique="lr-rewinding:2ep", until="2 rounds"
        )
        trace = go(model, optimizer, scheduler, run).trace
        np.testing.assert_array_equal(trace.lr[: 2 * STEPS], history.lr[4 * STEPS :])
        np.testing.assert_array_equal(trace.lr[2 * STEPS :], history.lr[4 * STEPS :])

    def test_given_lr(self):
        model, optimizer, scheduler, run = make(
            pretrained=True, technique="fine-tuning:1ep,lr=0.02", until="1 rounds"
        )
        assert (go(model, optimizer, scheduler, run).trace.lr == 0.02).all()


def test_fine_tuning_at_no_lr_is_refused_after_training_and_nothing_is_lost(tmp_path):
    """The refusal names what to pass; with that, the same folder goes on without training again."""

    def start(technique):
        model, optimizer, _, _ = make()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T * STEPS, eta_min=0)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        seen = []
        run = Run(
            model,
            optimizer,
            epochs=T,
            technique=technique,
            until="1 rounds",
            scheduler=scheduler,
            folder=tmp_path,
        )
        torch.manual_seed(1)
        for epoch in run:
            seen.append((run.round, epoch))
            train(model, optimizer, scheduler)
            if run.round == 0 and epoch == T - 1:
                optimizer.param_groups[0]["lr"] = 1e-9
                optimizer.step()
        return seen

    with pytest.raises(
        ValueError, match=r"nothing would be trained. Give one, as in fine_tuning\(lr=0.001\)"
    ):
        start("fine-tuning")
    assert start("fine-tuning:lr=0.001") == [(1, e) for e in range(T)]


@pytest.mark.parametrize(("options", "message"), [
    ({"criterion": "magnitud"}, "magnitude"),
    ({"criterion": "gradient"}, "'gradient' needs data: pass evidence="),
    ({"pattern": "weights"}, "unknown pattern 'weights': did you mean 'weight'"),
    ({"allocation": "ERK"}, "erk"),
    ({"scope": ["head"]}, "head"),
])  # fmt: skip
def test_unknown_names_are_refused_before_anything_is_trained(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_movement_sees_the_lr_that_a_step_really_uses():
    """The scheduler writes another lr than the one replayed in fine-tuning; an attached optimizer is watched too."""
    for rebuild in (False, True):
        model, optimizer, scheduler, run = make(
            criterion="movement", technique="fine-tuning:2ep", until="1 rounds"
        )
        run._live.movement.sums = {
            name: torch.zeros_like(total) for name, total in run._live.movement.sums.items()
        }
        expected = torch.zeros_like(model[0].weight)
        torch.manual_seed(1)
        for _ in run:
            if rebuild:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
                run.attach(optimizer, scheduler)

            def sum_up(optimizer, args, kwargs, w=model[0].weight, expected=expected):
                with torch.no_grad():
                    expected.sub_(optimizer.param_groups[0]["lr"] * w.grad * w)

            handle = optimizer.register_step_pre_hook(sum_up)
            train(model, optimizer, scheduler)
            handle.remove()
        torch.testing.assert_close(run._live.movement.sums["0.weight"], expected.detach())
        assert run._live.movement.steps == (T + 2) * STEPS


def test_movement_criterion_watches_by_itself():
    model, optimizer, scheduler, run = make(criterion="movement", until="2 rounds")
    result = go(model, optimizer, scheduler, run)
    assert [r.kept for r in result.rounds] == [144, 115, 92]


def test_random_and_function_criteria_and_allocations():
    for options in ({"criterion": "random"}, {"criterion": lambda e: {n: w.square() for n, w in e.weights.items()}},
                    {"allocation": "uniform"}, {"allocation": "erk"}, {"allocation": "lamp"}):  # fmt: skip
        model, optimizer, scheduler, run = make(until=0.4, **options)
        assert go(model, optimizer, scheduler, run).rounds[-1].kept == round(0.4 * 144)


def test_gradient_criterion_through_evidence():
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    model, optimizer, scheduler, run = make(
        criterion="gradient", until="2 rounds",
        evidence=lambda m, scope: rewound.Evidence(m, scope, batches=batches, loss=nn.functional.cross_entropy),
    )  # fmt: skip
    assert go(model, optimizer, scheduler, run).rounds[-1].kept == 92


def test_allocation_by_tensor():
    model, optimizer, scheduler, run = make(until=None, allocation={"0.weight": 0.5})
    result = go(model, optimizer, scheduler, run)
    assert result.rounds[-1].densities == {"0.weight": 0.5, "4.weight": 1.0}


def test_ema_copies_among_the_extras_obey_the_mask_and_rewind():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    run = Run(
        model,
        optimizer,
        epochs=3,
        technique="weight-rewinding:2ep",
        until="2 rounds",
        scheduler=scheduler,
        extras=[ema],
    )
    early = {}
    torch.manual_seed(1)
    for epoch in run:
        if run.round and epoch == 1:
            kept = run.mask["0.weight"]
            assert torch.equal(ema.module[0].weight, torch.where(kept, early["w"], 0))
        train(model, optimizer, scheduler)
        ema.update_parameters(model)
        if run.round == 0 and epoch == 0:
            early["w"] = ema.module[0].weight.detach().clone()
        if run.round:
            assert not ema.module[0].weight[~run.mask["0.weight"]].any()


def test_averages_begin_anew_with_fresh_weights():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    run = Run(model, optimizer, epochs=2, technique="reinitialization", until="1 rounds", extras=[ema])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    for epoch in run:
        if run.round and epoch == 0:
            assert torch.equal(ema.module[0].weight, model[0].weight)
            assert int(ema.n_averaged) == 0
        train(model, optimizer, scheduler)
        ema.update_parameters(model)


def test_misuse_is_said():
    model, optimizer, scheduler, run = make()
    with pytest.raises(RuntimeError, match="call it inside 'for epoch in run'"):
        run.log(a=1)
    with pytest.raises(TypeError, match="metric 'a' must be a number"):
        for _ in run:
            run.log(a="high")
    with pytest.raises(RuntimeError, match="iterated once"):
        next(iter(run))
    with pytest.raises(ValueError, match="'folder' must be a path"):
        make(folder="")


def test_the_loop_can_be_left_and_the_folder_is_free_again(tmp_path):
    model, optimizer, scheduler, run = make(folder=tmp_path)
    for _ in run:
        train(model, optimizer, scheduler)
        break
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, scheduler, run = make(folder=tmp_path)
        go(model, optimizer, scheduler, run)


def test_deepcopy_of_the_trained_model_is_an_ordinary_model():
    model, optimizer, scheduler, run = make(until="1 rounds")
    go(model, optimizer, scheduler, run)
    copied = copy.deepcopy(model)
    copied(torch.randn(8, 6)).sum().backward()
    assert copied[0].weight.grad[copied[0].weight == 0].any()


class NoLr(torch.optim.SGD):
    """Chooses its step size itself, as some optimizers do, and shows None."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["lr"] = None


@pytest.mark.parametrize(("build", "options", "error", "message"), [
    (torch.optim.LBFGS, {}, TypeError, "LBFGS evaluates the loss many times"),
    (lambda p: torch.optim.SGD(list(p)[:1], lr=0.1), {}, ValueError, r"does not hold 1 of the 2 .*\(first: '4.weight'\)"),
    (NoLr, {}, ValueError, "has no learning rate to record"),
    (None, {"extras": [object()]}, TypeError, r"extras\[0\] is a object, which has no state_dict\(\)"),
    (None, {"scheduler": []}, TypeError, "scheduler is a list, which has no state_dict"),
    (None, {"extras": torch.Generator()}, TypeError, "'extras' must be a list of objects"),
    (None, {"seed": None}, TypeError, "'seed' must be a whole number"),
    (None, {"folder": 5}, TypeError, "PathLike"),
    (None, {"pretrained": True, "technique": "fine-tuning", "until": "acc drops 0.1"}, ValueError, "pass evaluate="),
])  # fmt: skip
def test_what_would_fail_after_the_original_run_is_refused_before_it(build, options, error, message):
    model = network()
    optimizer = (build or (lambda p: torch.optim.SGD(p, lr=0.1)))(model.parameters())
    with pytest.raises(error, match=message):
        Run(model, optimizer, **{"epochs": 2, "until": 0.5, **options})


def test_a_layer_that_is_frozen_after_training_keeps_its_zeros_and_may_thaw():
    model, optimizer, scheduler, run = make(technique="lr-rewinding:2ep", until="2 rounds")

    def each(epoch):
        model[0].requires_grad_(run.round == 2)

    go(model, optimizer, scheduler, run, each=each)
    assert not model[0].weight[~run.mask["0.weight"]].any()
    optimizer.zero_grad()
    model[0].requires_grad_(True)
    model(torch.randn(8, 6)).square().sum().backward()
    assert not model[0].weight.grad[~run.mask["0.weight"]].any()


def test_measuring_leaves_the_mode_of_every_module():
    """A batch norm frozen in evaluation mode inside a model that trains stays so."""
    modes = []

    def evaluate(model):
        model.eval()
        return {"norm": 1.0}

    model, optimizer, scheduler, run = make(evaluate=evaluate, until="1 round")
    model[1].eval()
    go(model, optimizer, scheduler, run, each=lambda e: modes.append([m.training for m in model]))
    assert modes == [[True, False, True, True, True]] * (2 * T)


@pytest.mark.parametrize("seed", [2**62, -1, np.int64(3)])
def test_any_whole_number_is_a_seed(seed):
    model, optimizer, scheduler, run = make(seed=seed, technique="reinitialization", until="1 round")
    go(model, optimizer, scheduler, run)
    assert run.result.finished


def test_a_relative_folder_stays_where_the_run_was_made(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model, optimizer, scheduler, run = make(folder="out \u00fc", until="1 round")
    go(model, optimizer, scheduler, run, each=lambda e: monkeypatch.chdir(tmp_path / "elsewhere"))
    assert (tmp_path / "out \u00fc" / "result.json").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


class Counting(nn.Module):
    """Makes a buffer in its first forward pass, and keeps a count that is no tensor."""

    def __init__(self):
        super().__init__()
        self.layer, self.count = nn.Linear(6, 3), 0
        self.register_buffer("seen", None)

    def forward(self, x):
        self.seen = x.new_zeros(()) if self.seen is None else self.seen + 1
        self.count += 1
        return self.layer(x)

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


def test_a_buffer_made_by_the_first_forward_pass_must_be_there_before():
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    with pytest.raises(
        RuntimeError, match=r"'seen' was not in the model before epoch 0 .*run one batch first"
    ):
        for _ in Run(model, optimizer, epochs=2, technique="lottery-ticket", until="1 round"):
            train(model, optimizer, scheduler)


def test_what_a_module_keeps_besides_tensors_rewinds_too():
    model = Counting()
    model(torch.randn(2, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    for _ in Run(model, optimizer, epochs=2, technique="lottery-ticket", until="2 rounds"):
        train(model, optimizer, scheduler)
    assert model.count == int(model.seen) + 1 == 1 + 2 * STEPS


def test_a_complex_parameter_outside_the_scope_is_no_obstacle():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.turn = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))

        def forward(self, x):
            return (self.layer(x).to(torch.complex64) @ self.turn).abs()

    model = Mixed()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    run = Run(model, optimizer, epochs=2, technique="weight-rewinding:1ep", until="2 rounds")
    go_on = [train(model, optimizer, scheduler) for _ in run]
    assert len(go_on) == 4
    run.guard.check()


def test_the_guard_of_the_round_before_is_gone_before_the_next_is_made(monkeypatch):
    """Its bits are as large as the weights."""
    model, optimizer, scheduler, run = make(until="2 rounds", technique="lr-rewinding:1ep")
    seen = []

    def guard(*arguments):
        seen.append(run.guard)
        return rewound.guard(*arguments)

    monkeypatch.setattr("rewound.live.Guard", guard)
    go(model, optimizer, scheduler, run)
    assert seen == [None, None]


def test_groups_need_not_have_the_same_keys():
    """Layer-wise scales and other notes in one group only; nobody schedules them."""
    for pretrained in (False, True):
        model = network()
        groups = [
            {"params": model[0].parameters(), "scale": 0.5},
            {"params": [*model[1].parameters(), *model[4].parameters()]},
        ]
        optimizer = torch.optim.SGD(groups[:: -1 if pretrained else 1], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        run = Run(model, optimizer, epochs=1, technique="fine-tuning", pretrained=pretrained, until="1 round")
        go(model, optimizer, scheduler, run)
        assert run.result.trace.names == ("lr", "momentum", "dampening", "weight_decay")


def test_a_result_is_of_its_moment_and_keeps_no_model_alive():
    def finished():
        model, optimizer, scheduler, run = make(technique="weight-rewinding:2ep", until="2 rounds")
        results = []
        go(
            model,
            optimizer,
            scheduler,
            run,
            each=lambda e: results.append(run.result) if run.round == 1 else None,
        )
        return results[0], run.result, weakref.ref(model)

    early, late, model = finished()
    gc.collect()
    assert model() is None
    assert [result.trace.steps for result in (early, late)] == [T * STEPS, (T + 4) * STEPS]


def test_an_attached_optimizer_must_have_what_is_recorded():
    model, optimizer, scheduler, run = make()
    groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[4].parameters()]}]
    for other, message in (
        (
            torch.optim.Adam(model.parameters()),
            "this Adam has 1, and lacks momentum, dampening. Attach an optimizer of the same",
        ),
        (
            torch.optim.SGD(groups, lr=0.1),
            "the recording has 1 parameter groups of lr, .*; this SGD has 2. Attach",
        ),
        (torch.optim.SGD(network().parameters(), lr=0.1), "does not hold 2 of the 2 parameters"),
    ):
        run = Run(model, optimizer, epochs=2, until=0.5)
        for _ in run:
            with pytest.raises(ValueError, match=message):
                run.attach(other)
            break


def test_evaluate_must_return_metrics_by_name():
    model, optimizer, scheduler, run = make(pretrained=True, technique="fine-tuning", evaluate=lambda m: 0.5)
    with pytest.raises(TypeError, match=r"'evaluate' must return a dict of metrics by name \(got float\)"):
        go(model, optimizer, scheduler, run)


def test_a_frozen_layer_has_gradients_to_be_scored_by():
    """Without, it would rank last and lose everything."""
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    model, optimizer, scheduler, run = make(
        criterion="gradient", until=0.5, rate=None, technique="lr-rewinding:1ep",
        evidence=lambda m, scope: rewound.Evidence(m, scope, batches=batches, loss=nn.functional.cross_entropy),
    )  # fmt: skip
    go(model, optimizer, scheduler, run, each=lambda e: model[0].requires_grad_(False))
    assert run.mask.densities["0.weight"] > 0
    assert not model[0].weight.requires_grad


def test_a_model_that_an_earlier_run_still_holds_is_refused():
    """Its original run would silently be trained under the old mask, whatever optimizer is new."""
    model, optimizer, scheduler, run = make(until="1 round", technique="lr-rewinding:1ep")
    go(model, optimizer, scheduler, run)
    new = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"'0.weight' is still guarded under the mask of an earlier run.*remove"
    ):
        Run(model, new, epochs=1, until=0.5)
    run.guard.remove()
    Run(model, new, epochs=1, until=0.5)
