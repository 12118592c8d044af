"""THE TABLE: after pruning, where do the weights come from, and where the hyper-parameters of each step?

                          | lr of the last step         | lr of step T-t onward     | lr restarts (later literature)
    ----------------------+-----------------------------+---------------------------+-------------------------------------
    weights at the end, T | fine-tuning                 | learning-rate rewinding   | scaled, cyclic, linear, adaptive
    weights at step T-t   | low-lr weight rewinding     | weight rewinding          |
    weights at step 0     |                             | lottery ticket            |
    fresh weights         |                             | re-initialisation         |

T is the length of the original run, t that of a retraining. A technique is a cell of this table: data, printable,
hashable, written as text ("lr-rewinding:36ep"). Rows and columns combine freely: ``Technique("fresh", "cyclic")``.

One peer stands beside the table, since it rewinds nothing: ``gradual`` prunes while the network is first trained, and its
schedule just goes on (Zhu and Gupta 2018).
(Renda, Frankle and Carbin 2020, section 2; Frankle and Carbin 2019; Le and Hua 2021; Zimmer et al. 2023.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rewound.lr_rules import LR_RULES, Damage, constant
from rewound.spelling import unknown
from rewound.trace import Trace

# weights rule -> (how it is printed, what becomes of the optimizer's state unless told otherwise).
# Optimizer state travels with the weights, as in the authors' code (docs/adr/0002-optimizer-state.md).
WEIGHTS: dict[str, tuple[str, str]] = {
    "final": ("weights at the end (T)", "carried"),
    "rewound": ("weights at step T-t", "rewound"),
    "initial": ("weights at step 0", "rewound"),
    "fresh": ("fresh weights", "fresh"),
}
LR: dict[str, str] = {
    "last": "lr of the last step",
    "rewound": "lr of step T-t onward",
    "scaled": "lr restarts: the schedule compressed",
    "cyclic": "lr restarts: a cosine",
    "linear": "lr restarts: a line to zero",
    "adaptive-linear": "lr restarts: a line to zero from a start that follows the damage",
}
BESIDE = {"continued": "the schedule goes on, within the one training"}  # no column: nothing is rewound
NAMES: dict[str, tuple[str, str]] = {
    "fine-tuning": ("final", "last"),
    "lr-rewinding": ("final", "rewound"),
    "low-lr-weight-rewinding": ("rewound", "last"),
    "weight-rewinding": ("rewound", "rewound"),
    "lottery-ticket": ("initial", "rewound"),
    "reinitialization": ("fresh", "rewound"),
    "scaled-restart": ("final", "scaled"),
    "cyclic-restart": ("final", "cyclic"),
    "linear-restart": ("final", "linear"),
    "adaptive-linear-restart": ("final", "adaptive-linear"),
    "gradual": ("final", "continued"),  # beside the table
}
OPTIMIZER_STATES = ("carried", "rewound", "fresh")


@dataclass(frozen=True)
class Technique:
    """A cell of the table: ``weights`` (a key of WEIGHTS) x ``lr`` (a key of LR).

    ``epochs`` is t; None means T, for weights rewound to T-t the largest whole number up to 0.9 T, the end of the paper's
    safe zone, and for ``gradual`` (where t is what follows the first pruning) three quarters of T. ``optimizer_state`` is
    carried, rewound or fresh; None means with the weights.
    ``lr_value`` replaces the recorded last learning rate in fine-tuning.

    >>> learning_rate_rewinding(36)
    Technique(lr-rewinding:36ep: weights at the end (T) x lr of step T-t onward, t = 36 epochs, optimizer carried)
    >>> str(weight_rewinding())
    'weight-rewinding'
    """

    weights: str
    lr: str
    epochs: int | None = None
    optimizer_state: str | None = None
    lr_value: float | None = None

    def __post_init__(self) -> None:
        _one_of("weights", self.weights, WEIGHTS)
        _one_of("lr", self.lr, {**LR, **BESIDE})
        if self.epochs is not None and (
            isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0
        ):
            raise ValueError(
                f"'epochs' must be a whole number of epochs, at least 0, or None (got {self.epochs!r})"
            )
        if self.optimizer_state is not None:
            _one_of("optimizer_state", self.optimizer_state, OPTIMIZER_STATES)
        if self.goes_on and (self.weights != "final" or self.state_rule != "carried"):
            raise ValueError(
                f"the schedule goes on where weights and optimizer state stay as they are (got {self.weights!r}, "
                f"{self.state_rule!r}); 'gradual' is the technique that does so"
            )
        if self.lr_value is not None and (self.lr != "last" or not 0 < self.lr_value < math.inf):
            raise ValueError(
                f"'lr' must be positive, and is for techniques with the last lr, such as fine-tuning "
                f"(got {self.lr_value!r} for {self.lr!r}); a rewound or restarted lr comes from the recording"
            )

    @property
    def name(self) -> str:
        """The literature's name of the cell, or ``weights x lr`` where it has none."""
        cell = (self.weights, self.lr)
        if cell == NAMES["lottery-ticket"] and self.epochs is not None:
            return "initialxrewound"  # a lottery ticket retrains for T
        return next((name for name, c in NAMES.items() if c == cell), f"{self.weights}x{self.lr}")

    @property
    def state_rule(self) -> str:
        """What becomes of the optimizer's state: carried, rewound or fresh."""
        return self.optimizer_state or WEIGHTS[self.weights][1]

    @property
    def goes_on(self) -> bool:
        """Whether it prunes while the network is first trained, so that there is no original run and nothing to rewind."""
        return self.lr == "continued"

    def starts(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs of a training of ``epochs`` that begin with a pruning; () for techniques that rewind.

        One each from T-t on, the last third of t being left to recover: by default from T/4 to 3T/4.

        >>> gradual_pruning().starts(12)
        (3, 4, 5, 6, 7, 8, 9)
        """
        if not self.goes_on:
            return ()
        t = self.length(epochs)
        return tuple(range(epochs - t, epochs - max(1, round(t / 3)) + 1))

    def length(self, epochs: int) -> int:
        """Return t in epochs, for an original run of ``epochs`` = T; ``ValueError`` where t > T."""
        if self.goes_on:
            return self._after_first_pruning(epochs)
        if self.epochs is None:
            # 0.9 T in integers: int(0.9 * 10) is 9, but 0.9 * 70 is 62.99...
            return max(1, epochs * 9 // 10) if self.weights == "rewound" else epochs
        if self.epochs > epochs:
            raise ValueError(
                f"{self} asks to go back {self.epochs} epochs, and the original run has {epochs}; "
                f"t must be at most T = {epochs}"
            )
        return self.epochs

    def _after_first_pruning(self, epochs: int) -> int:
        t = epochs - epochs // 4 if self.epochs is None else self.epochs
        t = min(t, epochs - 1) if self.epochs is None else t
        if not 1 <= t < epochs:
            raise ValueError(
                f"{self} prunes within a training of {epochs} epochs; an epoch at least must come before the first pruning, "
                f"and one after the last: 1 <= t < {epochs} (got {t})"
            )
        return t

    def replayed(self, recorded: Trace, steps: int, damage: Damage = Damage()) -> Trace:  # noqa: B008 (frozen)
        """Return the hyper-parameters of a retraining of ``steps`` steps, after the original run ``recorded``."""
        if self.lr_value is not None:
            return constant(recorded, steps, self.lr_value)
        return LR_RULES[self.lr](recorded, steps, damage)

    def __str__(self) -> str:
        options = [] if self.epochs is None else [f"{self.epochs}ep"]
        if self.lr_value is not None:
            options.append(f"lr={self.lr_value!r}")
        if self.optimizer_state not in (None, WEIGHTS[self.weights][1]):
            options.append(str(self.optimizer_state))
        return self.name + (":" + ",".join(options) if options else "")

    @property
    def told(self) -> str:
        """The text, and the cell of the table in words."""
        t = "" if self.epochs is None else f", t = {self.epochs} epochs"
        if self.goes_on:
            return f"{self}: pruned while it is first trained, {BESIDE[self.lr]}{t}"
        return f"{self}: {WEIGHTS[self.weights][0]} x {LR[self.lr]}{t}, optimizer {self.state_rule}"

    def __repr__(self) -> str:
        return f"Technique({self.told})"


def fine_tuning(epochs: int | None = None, *, lr: float | None = None) -> Technique:
    """Go on from the trained weights at the last learning rate of training, or at ``lr`` (Han et al. 2015)."""
    return Technique("final", "last", epochs, lr_value=lr)


def learning_rate_rewinding(epochs: int | None = None) -> Technique:
    """Go on from the trained weights with the schedule of the last t epochs (Renda et al. 2020; t = T: Algorithm 1)."""
    return Technique("final", "rewound", epochs)


def weight_rewinding(epochs: int | None = None) -> Technique:
    """Set weights and schedule back to T-t of the original run, in every round (Frankle et al. 2020)."""
    return Technique("rewound", "rewound", epochs)


def low_lr_weight_rewinding(epochs: int | None = None) -> Technique:
    """Set the weights back to T-t and train at the last learning rate: the paper's ablation (appendix)."""
    return Technique("rewound", "last", epochs)


def lottery_ticket() -> Technique:
    """Set weights and schedule back to step 0 (Frankle and Carbin 2019)."""
    return Technique("initial", "rewound")


def reinitialization(epochs: int | None = None) -> Technique:
    """Draw fresh weights under the mask and replay the schedule: a control."""
    return Technique("fresh", "rewound", epochs)


def scaled_restart(epochs: int | None = None) -> Technique:
    """SLR: the whole schedule compressed into t epochs, after a warm-up (Le and Hua 2021)."""
    return Technique("final", "scaled", epochs)


def cyclic_restart(epochs: int | None = None) -> Technique:
    """CLR: a cosine from the highest to the lowest learning rate, after a warm-up (Le and Hua 2021)."""
    return Technique("final", "cyclic", epochs)


def linear_restart(epochs: int | None = None) -> Technique:
    """LLR: a line from the highest learning rate to zero, after a warm-up (Zimmer et al. 2023)."""
    return Technique("final", "linear", epochs)


def adaptive_linear_restart(epochs: int | None = None) -> Technique:
    """ALLR: LLR from a start that follows the damage of the pruning and the budget (Zimmer et al. 2023)."""
    return Technique("final", "adaptive-linear", epochs)


def gradual_pruning(epochs: int | None = None) -> Technique:
    """GMP: prune before every epoch of the first training, by a cubic schedule (Zhu and Gupta 2018).

    ``epochs`` is what follows the first pruning. Masks are nested: unlike in the authors' code a pruned weight stays pruned.
    """
    return Technique("final", "continued", epochs)


def parse_technique(text: str | Technique) -> Technique:
    """Read a technique from text: ``name[:option,option]``, options ``36ep``, ``lr=0.001``, ``fresh``.

    >>> parse_technique("fine-tuning:10ep,lr=0.001") == fine_tuning(10, lr=0.001)
    True
    """
    if isinstance(text, Technique):
        return text
    if not isinstance(text, str):
        raise TypeError(f"'technique' must be a Technique or its text (got {type(text).__name__})")
    name, _, options = text.partition(":")
    cell = NAMES.get(name.strip())
    if cell is None:
        weights, _, lr = name.strip().partition("x")
        if weights not in WEIGHTS or lr not in LR:
            raise ValueError(unknown("technique", name.strip(), NAMES))
        cell = (weights, lr)
    technique = Technique(*cell)
    for option in filter(None, (o.strip() for o in options.split(","))):
        if match := re.fullmatch(r"(\d+) ?(ep|epochs?)", option):
            technique = replace(technique, epochs=int(match[1]))
        elif match := re.fullmatch(r"lr ?= ?([-+.\deE]+)", option):
            technique = replace(technique, lr_value=float(match[1]))
        elif option in OPTIMIZER_STATES:
            technique = replace(technique, optimizer_state=option)
        else:
            raise ValueError(
                f"cannot read {option!r} in the technique {text!r}; options are a retraining time in epochs (36ep), "
                f"lr=0.001, and for the optimizer's state {', '.join(OPTIMIZER_STATES)}"
            )
    if name.strip() == "lottery-ticket" and technique.epochs is not None:
        raise ValueError("a lottery ticket goes back to step 0 and retrains for T epochs; it takes no epochs")
    return technique


def _one_of(field: str, value: str, known: Mapping | tuple) -> None:
    if value not in known:
        raise ValueError(unknown(field, value, known))
