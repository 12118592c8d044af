"""Draw docs/images/method.svg: what each technique does to the learning rate, by the package's own rules.

python docs/draw_method.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from rewound import Technique, Trace, parse_technique
from rewound.damage import Damage

EPOCHS, PER_EPOCH = 90, 10  # T, and so few steps an epoch that the file stays small
PEAK, WARM_UP, DROPS = 0.4, 5, (30, 60, 80)  # the paper's schedule for ImageNet
DAMAGE = Damage(relative_norm=0.3, pruned=0.2)  # an example: a fifth of the weights, three tenths of the norm
INK, GREY = "#222222", "#9a9a9a"
# text of the technique -> title, and a colour of Okabe and Ito's palette, which any eye can tell apart
PANELS = {
    "fine-tuning": ("fine-tuning", "#D55E00"),
    "weight-rewinding": ("weight rewinding", "#0072B2"),
    "lr-rewinding": ("learning-rate rewinding", "#009E73"),
    "low-lr-weight-rewinding": ("low-lr weight rewinding", "#CC79A7"),
    "scaled-restart:45ep": ("scaled restart", "#56B4E9"),
    "cyclic-restart:45ep": ("cyclic restart", "#56B4E9"),
    "linear-restart:45ep": ("linear restart", "#56B4E9"),
    "adaptive-linear-restart:45ep": ("adaptive linear restart", "#56B4E9"),
}


def schedule(step: int) -> float:
    """Return the learning rate of the original run: a warm-up from zero, then three drops to a tenth."""
    epoch = step / PER_EPOCH
    return PEAK * min(1.0, epoch / WARM_UP) * 0.1 ** sum(epoch >= drop for drop in DROPS)


def draw(file: str | Path) -> None:
    """Write the picture to ``file``, in the format that its ending names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recorded = Trace.from_schedule(schedule, epochs=EPOCHS, steps_per_epoch=PER_EPOCH)
    plain = {
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "svg.hashsalt": "rewound",
    }
    with plt.rc_context(plain):
        figure, axes = plt.subplots(2, 4, figsize=(10.5, 4.9), sharex=True, sharey=True, layout="constrained")
        for axis, (text, (title, colour)) in zip(axes.flat, PANELS.items()):
            axis.set_title(title, loc="left")
            _panel(axis, parse_technique(text), recorded, colour)
        for axis in axes[:, 0]:
            axis.set_ylabel("learning rate")
        for axis in axes[-1]:
            axis.set_xlabel("epochs trained")
        figure.savefig(file, metadata={"Date": None} if str(file).endswith(".svg") else None, dpi=130)
        plt.close(figure)


def _panel(axis, technique: Technique, recorded: Trace, colour: str) -> None:
    t = technique.length(EPOCHS)
    replayed = technique.replayed(recorded, t * PER_EPOCH, DAMAGE).lr[:, 0]
    original = recorded.lr[:, 0]
    steps = [step / PER_EPOCH for step in range((EPOCHS + t) * PER_EPOCH)]
    point = EPOCHS - t
    came_from = point if technique.weights == "rewound" else EPOCHS
    axis.axvline(EPOCHS, color=GREY, lw=0.8, ls=(0, (2, 2)))
    axis.plot(steps[: len(original)], original, color=GREY, lw=1.6, solid_capstyle="butt")
    axis.plot(steps[len(original) :], replayed, color=colour, lw=2.2, solid_capstyle="butt")
    # Where the weights come from: a ring on the original run, and an arrow if that is before its end.
    lr = original[min(int(came_from * PER_EPOCH), len(original) - 1)]
    axis.plot([came_from], [lr], "o", ms=6, mfc="white", mec=INK, mew=1.2, zorder=5)
    if came_from < EPOCHS:
        bent = {
            "arrowstyle": "-|>",
            "connectionstyle": "arc3,rad=-0.28",
            "color": INK,
            "lw": 1.0,
            "shrinkA": 5,
        }
        axis.annotate("", xy=(EPOCHS, PEAK * 0.8), xytext=(came_from, lr), arrowprops=bent, zorder=4)
    length = "T" if t == EPOCHS else f"{t / EPOCHS:g} T"
    source = f"weights of epoch {came_from}" if came_from < EPOCHS else "weights at the end"
    axis.text(0.02, 0.03, f"t = {length}\n{source}", transform=axis.transAxes, fontsize=7.2, va="bottom")
    axis.set_yscale("log")
    axis.set_ylim(5e-5, 1.6)
    axis.set_xlim(0, 2 * EPOCHS)
    axis.set_xticks([0, EPOCHS, 2 * EPOCHS], ["0", "T", "2 T"])
    axis.minorticks_off()


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "images" / "method.svg")
