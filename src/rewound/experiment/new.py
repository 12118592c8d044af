"""What ``rewound new`` writes: a task or a recipe to begin from, short, commented, and running as it is."""

from __future__ import annotations

from pathlib import Path

RECIPE = """\
# One experiment: every technique with every seed.
#     rewound plan {file}      what it will train and cost
#     rewound run {file}       run it, or go on with it

# A task that ships ('rewound doctor' lists them), or a file of your own: "my_task.py:MyTask".
task = "digits"

# The arms are every technique with every seed. A technique's options follow a colon: "lr-rewinding:10ep".
techniques = ["fine-tuning", "weight-rewinding", "lr-rewinding"]
seeds = 3                   # a count, or a list such as [0, 1, 2]

epochs = 20                 # T, the length of the original run
rate = 0.2                  # the fraction of the survivors that a round prunes; "one-shot" for one round only
until = 0.05                # a density; or "20x", "10 rounds", "accuracy drops 0.01"; or a list of these

criterion = "magnitude"     # which weights go: the smallest; or "gradient", "movement", "random"
pattern = "weight"          # what goes together; "channel", "filter", "head", "hidden unit", "unit"; "4x1" blocks; "2:4"
allocation = "global"       # how many from each tensor: "global", "uniform", "erk", "lamp"; "cost", "for_multiply_adds(0.1)"
data_order = "rewind"       # an epoch has the same batches in every round; "fresh": new ones

workers = 2                 # arms side by side ...
threads = 1                 # ... each on so many threads
# folder = "runs/mine"      # where results go; left out: runs/ and this file's name

# [task_options]            # what the task itself takes
# batch_size = 64

# [scope]                   # which tensors may be pruned; left out: all but biases, norms and embeddings
# exclude = ["head.*"]
"""

TASK = '''\
"""A task of your own: which network, which data, and what counts as good. Run it with

    rewound run RECIPE --set task={file}:{name}
"""

import torch
from torch import nn

from rewound.tasks.batches import batches
from rewound.tasks.evaluation import evaluate


class {name}:
    name = "{stem}"
    metric = "accuracy"  # the metric that decides, one of those that evaluate() returns
    higher_is_better = True
    epochs = 20  # T, unless the recipe says otherwise

    def __init__(self, batch_size: int = 32, data_order: str = "rewind"):  # the recipe's [task_options]
        self.batch_size, self.data_order = batch_size, data_order
        # Replace this by your data. Here: is a point of the plane inside a ring?
        points = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        radius = points.norm(dim=1)
        inside = ((radius > 0.4) & (radius < 0.8)).long()
        # Training, validation (for every choice) and test (once, at the end) never share an example.
        self.train = points[:600], inside[:600]
        self.splits = {{
            "validation": (points[600:800], inside[600:800]),
            "test": (points[800:], inside[800:]),
        }}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def scheduler(self, optimizer, steps: int, steps_per_epoch: int):
        # Stepped after every optimizer step. Its course is recorded once, and rewound from the recording.
        drops = [steps // 2, steps * 3 // 4]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train[1]) // self.batch_size)

    def batches(self, epoch: int, seed: int, round: int = 0):
        # The order must follow from (seed, epoch) alone, so that an epoch can come again.
        return batches(*self.train, self.batch_size, epoch, seed, round, data_order=self.data_order)

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        return evaluate(model, [self.splits[split]], [self.metric], self.loss)
'''


def write_new(path: str | Path) -> str:
    """Write a task (``.py``) or a recipe (``.toml``) and return one line on what to do with it.

    Raises FileExistsError rather than overwrite anything, ValueError for another ending.
    """
    path = Path(path)
    if path.suffix == ".toml":
        text = RECIPE.format(file=path)
        then = f"wrote {path}; next: rewound plan {path}"
    elif path.suffix == ".py":
        if not path.stem.isidentifier():
            raise ValueError(f"{path.stem!r} is no name that Python can import; letters, digits and _ only")
        name = "".join(part.capitalize() for part in path.stem.split("_")) or "MyTask"
        text = TASK.format(file=path, stem=path.stem, name=name)
        then = (
            f"wrote {path}; next: rewound new recipe.toml; rewound run recipe.toml --set task={path}:{name}"
        )
    else:
        raise ValueError(
            f"'rewound new' writes a task (my_task.py) or a recipe (recipe.toml), not {str(path)!r}"
        )
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FileExistsError(f"{path} is already there, and is left as it is; choose another name") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first") from None
    return then
