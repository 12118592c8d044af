"""A technique is data: a cell of the table, readable, printable, hashable."""

import pytest

import rewound
from rewound.configuration import needed_snapshots
from rewound.techniques import LR, NAMES, WEIGHTS, Technique, parse_technique

MAKERS = {
    "fine-tuning": rewound.fine_tuning,
    "lr-rewinding": rewound.learning_rate_rewinding,
    "weight-rewinding": rewound.weight_rewinding,
    "low-lr-weight-rewinding": rewound.low_lr_weight_rewinding,
    "reinitialization": rewound.reinitialization,
    "lottery-ticket": rewound.lottery_ticket,
    "scaled-restart": rewound.scaled_restart,
    "cyclic-restart": rewound.cyclic_restart,
    "linear-restart": rewound.linear_restart,
    "adaptive-linear-restart": rewound.adaptive_linear_restart,
    "gradual": rewound.gradual_pruning,
}


def test_every_named_cell_has_its_function_and_its_text():
    assert MAKERS.keys() == NAMES.keys()
    for name, make in MAKERS.items():
        assert str(make()) == name
        assert parse_technique(name) == make()
        assert hash(parse_technique(name)) == hash(make())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("lr", LR)
@pytest.mark.parametrize(
    "options", [{}, {"epochs": 36}, {"optimizer_state": "fresh"}, {"epochs": 3, "optimizer_state": "rewound"}]
)
def test_every_cell_survives_its_text(weights, lr, options):
    technique = Technique(weights, lr, **options)
    again = parse_technique(str(technique))
    assert (again.weights, again.lr, again.epochs, again.state_rule) == (
        weights, lr, technique.epochs, technique.state_rule,
    )  # fmt: skip


def test_text_with_options():
    assert parse_technique("lr-rewinding:36ep") == rewound.learning_rate_rewinding(36)
    assert parse_technique(" fine-tuning : 10 epochs , lr = 1e-3 ") == rewound.fine_tuning(10, lr=1e-3)
    assert str(rewound.fine_tuning(10, lr=1e-3)) == "fine-tuning:10ep,lr=0.001"
    assert parse_technique("weight-rewinding:fresh").state_rule == "fresh"


def test_printed_as_the_cell_it_is():
    assert "weights at step T-t x lr of step T-t onward" in repr(rewound.weight_rewinding(9))
    assert "weights at the end (T) x lr of the last step" in repr(rewound.fine_tuning())


def test_optimizer_state_travels_with_the_weights_unless_told_otherwise():
    """Trap 4: rewound with weight rewinding, carried by fine-tuning and learning-rate rewinding."""
    rules = {name: make().state_rule for name, make in MAKERS.items()}
    assert {n for n, r in rules.items() if r == "rewound"} == {
        "weight-rewinding",
        "low-lr-weight-rewinding",
        "lottery-ticket",
    }
    assert {n for n, r in rules.items() if r == "fresh"} == {"reinitialization"}


@pytest.mark.parametrize(
    ("technique", "epochs", "t"),
    [
        (rewound.learning_rate_rewinding(), 40, 40),
        (rewound.fine_tuning(), 40, 40),
        (rewound.lottery_ticket(), 40, 40),
        (rewound.weight_rewinding(), 40, 36),
        (rewound.weight_rewinding(), 182, 163),
        (rewound.weight_rewinding(), 70, 63),  # 0.9 * 70 is 62.999... in floating point
        (rewound.weight_rewinding(), 1, 1),
        (rewound.learning_rate_rewinding(0), 40, 0),
        (rewound.learning_rate_rewinding(40), 40, 40),
    ],
)
def test_length(technique, epochs, t):
    assert technique.length(epochs) == t


def test_only_the_snapshots_that_are_needed():
    full = ("model", "rng", "extras", "optimizer", "clock")
    assert needed_snapshots(rewound.fine_tuning(5), 40) == {35: ("clock",)}
    assert needed_snapshots(rewound.lottery_ticket(), 40) == {0: full}
    assert needed_snapshots(parse_technique("weight-rewinding:10ep,fresh"), 40) == {
        30: ("model", "rng", "extras", "clock")
    }
    assert needed_snapshots(Technique("initial", "rewound", 10), 40) == {0: full[:4], 30: ("clock",)}
    assert needed_snapshots(rewound.reinitialization(), 40) == {0: ("clock",)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: parse_technique("lr-rewindng"),
            r"unknown technique 'lr-rewindng': did you mean 'lr-rewinding'\? \(known: fine-tuning, ",
        ),
        (
            lambda: parse_technique("lr-rewinding:36h"),
            r"cannot read '36h' in the technique 'lr-rewinding:36h'",
        ),
        (
            lambda: parse_technique("lr-rewinding:lr=0.1"),
            "a rewound or restarted lr comes from the recording",
        ),
        (lambda: parse_technique("lottery-ticket:5ep"), "goes back to step 0"),
        (lambda: rewound.fine_tuning(-1), "whole number of epochs, at least 0"),
        (lambda: rewound.fine_tuning(2.5), "whole number of epochs"),
        (lambda: rewound.fine_tuning(lr=0), "'lr' must be positive"),
        (lambda: Technique("early", "rewound"), "unknown weights 'early'"),
        (lambda: Technique("final", "rewound", optimizer_state="kept"), "unknown optimizer_state 'kept'"),
    ],
)
def test_errors_name_what_was_asked_and_what_there_is(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_not_a_text():
    with pytest.raises(TypeError, match="must be a Technique or its text"):
        parse_technique(3)
