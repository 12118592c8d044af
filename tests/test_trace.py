"""The recording is what the optimizer used; the replay sets it again, row by row."""

import numpy as np
import pytest
import torch

from rewound.trace import Recorder, Replay, Trace, hyper_parameters


def two_groups(**options):
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    return torch.optim.SGD(
        [{"params": [a], "lr": 0.5}, {"params": [b], "weight_decay": 0.1}], lr=0.1, **options
    )


def test_records_every_group_and_everything_scheduled():
    optimizer = two_groups(momentum=0.9)
    recorder = Recorder(optimizer)
    for step in range(4):
        if step % 2 == 0:
            recorder.start_epoch()
        optimizer.param_groups[0]["momentum"] = 0.1 * step
        optimizer.step()
        optimizer.param_groups[1]["lr"] /= 2
    trace = recorder.trace()
    assert trace.names == ("lr", "momentum", "dampening", "weight_decay")
    assert trace.epoch_starts == (0, 2)
    np.testing.assert_array_equal(trace.lr, [[0.5, 0.1], [0.5, 0.05], [0.5, 0.025], [0.5, 0.0125]])
    np.testing.assert_array_equal(trace.of("momentum")[:, 0], [0.1 * s for s in range(4)])
    np.testing.assert_array_equal(trace.of("weight_decay")[0], [0.0, 0.1])


def test_betas_and_tensor_lr():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.25), foreach=False)
    recorder = Recorder(optimizer)
    optimizer.step()
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    optimizer.step()
    trace = recorder.trace()
    recorder.remove()
    assert trace.of("betas.0")[:, 0].tolist() == [0.9, 0.8]
    lr = optimizer.param_groups[0]["lr"]
    replay, again = Replay(optimizer, trace), Recorder(optimizer)
    lr.fill_(7.0)
    optimizer.param_groups[0]["betas"] = (0.1, 0.2)
    replay.start_epoch(0)
    for _ in range(2):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] is lr  # a compiled step holds on to the tensor
    np.testing.assert_array_equal(again.trace().values, trace.values)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert isinstance(optimizer.param_groups[0]["betas"], tuple)


def test_replay_overrules_a_scheduler_and_counts_rows_within_the_epoch():
    """An epoch with fewer steps (GradScaler skipped one) does not shift the next; a longer one holds its last row."""
    optimizer = two_groups()
    trace = Trace(np.arange(6.0).reshape(6, 1, 1), ("lr",), (0, 3))
    replay, recorder = Replay(optimizer, trace), Recorder(optimizer)
    for epoch, steps in ((0, 2), (1, 4)):
        replay.start_epoch(epoch)
        for _ in range(steps):
            optimizer.param_groups[0]["lr"] = 99.0
            optimizer.step()
    assert recorder.trace().lr[:, 0].tolist() == [0, 1, 3, 4, 5, 5]
    assert recorder.trace().lr[:, 1].tolist() == [0, 1, 3, 4, 5, 5]  # one recorded group serves both
    assert replay.overrun == 1


def test_last_epochs_is_a_slice():
    trace = Trace(np.arange(12.0).reshape(6, 2, 1), ("lr",), (0, 2, 3))
    part = trace.last_epochs(2)
    np.testing.assert_array_equal(part.values, trace.values[2:])
    assert part.epoch_starts == (0, 1)
    assert trace.last(5).epoch_starts == (0, 1, 2)
    assert trace.last_epochs(3).values.shape == trace.values.shape
    assert trace.last_epochs(0).steps == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.last(7), "between 0 and the 6 recorded steps"),
        (lambda t: t.last_epochs(4), "between 0 and the 3 recorded epochs"),
    ],
)
def test_more_than_was_recorded_is_an_error(call, message):
    trace = Trace(np.arange(12.0).reshape(6, 2, 1), ("lr",), (0, 2, 3))
    with pytest.raises(ValueError, match=message):
        call(trace)


def test_a_trace_owns_its_values_and_survives_a_file(tmp_path):
    values = np.ones((3, 1, 1))
    trace = Trace(values, ("lr",), (0,))
    values[:] = 7
    assert trace.lr.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        trace.values[0] = 2
    torch.save(trace.to_plain(), tmp_path / "t.pt")
    again = Trace.from_plain(torch.load(tmp_path / "t.pt", weights_only=True))
    np.testing.assert_array_equal(again.values, trace.values)
    assert again.names == trace.names


def test_recorder_goes_on_after_load():
    optimizer = two_groups()
    recorder = Recorder(optimizer)
    recorder.start_epoch()
    optimizer.step()
    again = Recorder(optimizer)
    again.load(recorder.trace())
    again.start_epoch()
    optimizer.step()
    assert again.trace().steps == 2
    assert again.trace().epoch_starts == (0, 1)


def test_replay_on_another_kind_of_optimizer_says_what_it_lacks():
    trace = Trace(np.ones((2, 1, 2)), ("lr", "betas.0"), (0,))
    with pytest.raises(ValueError, match=r"schedules 'betas.0', which a parameter group of this SGD lacks"):
        Replay(two_groups(), trace)
    with pytest.raises(ValueError, match="3 parameter groups, the optimizer 2"):
        Replay(two_groups(), Trace(np.ones((2, 3, 1)), ("lr",), (0,)))


def test_groups_added_while_recording_are_refused():
    optimizer = two_groups()
    Recorder(optimizer)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(RuntimeError, match="had 2 parameter groups"):
        optimizer.step()


def test_scheduler_bounds_and_flags_are_not_hyper_parameters():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    assert set(hyper_parameters(optimizer.param_groups[0])) == {"lr", "momentum", "dampening", "weight_decay"}


@pytest.mark.parametrize("starts", [(), (1, 2), (0, 3, 2), (0, 9)])
def test_epoch_starts_must_fit_the_steps(starts):
    with pytest.raises(
        ValueError, match="'epoch_starts' must begin with 0, rise, and stay within the 4 steps"
    ):
        Trace(np.ones((4, 1, 1)), ("lr",), starts)
