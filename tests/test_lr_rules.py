"""Each rule is a pure function from the recorded run to t rows; compared here as arrays."""

import math

import numpy as np
import pytest

from rewound.lr_rules import LR_RULES, Damage, constant
from rewound.techniques import LR, fine_tuning, learning_rate_rewinding
from rewound.trace import Trace


def schedule(steps=40, warm=4, momentum=None):
    """Warm-up, then steps down at 1/2 and 3/4, with a second group at half the lr."""
    lr = [
        0.4 * (s + 1) / warm if s < warm else 0.4 * 0.1 ** ((s >= steps // 2) + (s >= 3 * steps // 4))
        for s in range(steps)
    ]
    values = np.stack([np.array(lr), np.array(lr) / 2], axis=1)[:, :, None]
    other = np.linspace(0.85, 0.95, steps)[:, None, None].repeat(2, axis=1)
    return Trace(np.concatenate([values, other], axis=2), ("lr", "momentum"), tuple(range(0, steps, 5)))


RECORDED = schedule()


@pytest.mark.parametrize("rule", LR_RULES)
@pytest.mark.parametrize("steps", [1, 3, 5, 17, 40])
def test_every_rule_gives_t_rows_for_every_group(rule, steps):
    trace = LR_RULES[rule](RECORDED, steps, Damage(0.3, 0.2))
    assert trace.values.shape == (steps, 2, 2)
    assert np.isfinite(trace.values).all()
    assert (trace.lr >= 0).all()
    assert trace.lr.max() <= RECORDED.lr.max() + 1e-15
    assert trace.epoch_starts == RECORDED.last(steps).epoch_starts
    np.testing.assert_allclose(trace.lr[:, 1], trace.lr[:, 0] / 2)


def test_the_table_and_the_rules_have_the_same_columns():
    assert list(LR) == list(LR_RULES)


@pytest.mark.parametrize("steps", [1, 7, 10, 23, 40])
def test_rewound_is_the_slice(steps):
    """Trap 5, for t = T, a warm-up seam (40) and t that is no multiple of an epoch."""
    trace = LR_RULES["rewound"](RECORDED, steps, Damage())
    np.testing.assert_array_equal(trace.values, RECORDED.values[40 - steps :])


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_rewinding_equals_fine_tuning_within_the_last_constant_piece(steps):
    """Trap 6: the last piece of this schedule is 10 steps long."""
    rewound = LR_RULES["rewound"](RECORDED, steps, Damage())
    np.testing.assert_array_equal(rewound.lr, LR_RULES["last"](RECORDED, steps, Damage()).lr)
    assert not np.array_equal(
        LR_RULES["rewound"](RECORDED, 11, Damage()).lr, LR_RULES["last"](RECORDED, 11, Damage()).lr
    )


def test_rewinding_further_than_was_trained_is_an_error():
    with pytest.raises(ValueError, match="between 0 and the 40 recorded steps"):
        LR_RULES["rewound"](RECORDED, 41, Damage())
    with pytest.raises(ValueError, match="asks to go back 11 epochs, and the original run has 10"):
        learning_rate_rewinding(11).length(10)


def test_fine_tuning_holds_every_hyper_parameter_of_the_last_step():
    trace = LR_RULES["last"](RECORDED, 12, Damage())
    assert (trace.values == RECORDED.values[-1]).all()


def test_fine_tuning_at_a_last_lr_of_almost_zero_is_refused_naming_what_to_pass():
    cosine = Trace.from_schedule(
        lambda s: 0.1 * 0.5 * (1 + math.cos(math.pi * s / 999)), epochs=1, steps_per_epoch=1000
    )
    with pytest.raises(
        ValueError, match=r"nothing would be trained. Give one, as in fine_tuning\(lr=0.001\)"
    ):
        fine_tuning().replayed(cosine, 10)
    assert (fine_tuning(lr=0.003).replayed(cosine, 10).lr == 0.003).all()
    assert (constant(RECORDED, 10, 0.5).of("momentum") == 0.95).all()


def test_scaled_is_the_schedule_compressed_with_its_warm_up_at_the_peak():
    lr = LR_RULES["scaled"](RECORDED, 20, Damage()).lr[:, 0]
    np.testing.assert_allclose(lr[:2], [0.2, 0.4])  # the first tenth rises to the peak
    np.testing.assert_allclose(np.unique(lr[2:]), [0.004, 0.04, 0.4])
    assert [int((np.isclose(lr[2:], v)).sum()) for v in (0.4, 0.04, 0.004)] == [9, 5, 4]


def test_cyclic_goes_from_peak_to_lowest_as_a_cosine():
    lr = LR_RULES["cyclic"](RECORDED, 22, Damage()).lr[2:, 0]
    assert lr[0] == pytest.approx(0.4)
    assert lr[-1] == pytest.approx(0.004)  # not the lower lr of the warm-up
    np.testing.assert_allclose(lr, 0.004 + 0.396 * 0.5 * (1 + np.cos(np.pi * np.arange(20) / 19)))


def test_linear_goes_from_peak_to_zero():
    lr = LR_RULES["linear"](RECORDED, 20, Damage()).lr[:, 0]
    np.testing.assert_allclose(lr[2:], 0.4 * (1 - np.arange(18) / 18))


@pytest.mark.parametrize(
    ("norm", "pruned", "start"),
    [
        (0.0, 0.2, 0.2),  # trap 6: no damage leaves the floor of the budget, peak * t / T
        (0.3, 0.25, 0.24),  # 0.4 * 0.3 / 0.5
        (0.9, 0.2, 0.4),  # never above the peak
    ],
)
def test_adaptive_linear_starts_by_damage_and_budget(norm, pruned, start):
    lr = LR_RULES["adaptive-linear"](RECORDED, 20, Damage(norm, pruned)).lr[:, 0]
    assert lr[1] == pytest.approx(start)
    assert lr[2] == pytest.approx(start)
    assert lr[-1] == pytest.approx(start / 18)


def test_restarts_hold_the_other_hyper_parameters_at_their_last_value():
    for rule in ("scaled", "cyclic", "linear", "adaptive-linear"):
        assert (LR_RULES[rule](RECORDED, 20, Damage(0.1, 0.2)).of("momentum") == 0.95).all()
