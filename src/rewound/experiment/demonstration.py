"""What ``rewound run`` does without a recipe: the paper's three techniques on 1,797 real images of digits."""

from __future__ import annotations

from rewound.experiment.recipe import Recipe

FOLDER = "rewound-demo"
DEMONSTRATION = Recipe(
    name="demonstration",
    task="digits",
    techniques=("fine-tuning", "weight-rewinding", "lr-rewinding"),
    seeds=(0, 1, 2),
    epochs=20,
    rate=0.2,
    until=0.02,
    folder=FOLDER,
)
