"""A user's script, run again and again by test_resume.py.

For every line "FOLDER TECHNIQUE" on standard input, a forked process runs main(): it prints where it is, and at the end a
digest of all there is. Its number comes first, and the parent prints "ended" when it is gone.
"""

import hashlib
import os
import random
import sys

import numpy as np
import torch
from torch import nn

import rewound

torch.set_num_threads(1)


def main(folder: str, technique: str) -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=4 * 12)
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    generator = torch.Generator().manual_seed(9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    run = rewound.Run(
        model, optimizer, epochs=4, technique=technique, until=("3 rounds", "loss rises 1000"), scheduler=scheduler,
        extras=[ema, generator, scaler], folder=folder, evaluate=lambda m: {"norm": m[0].weight.detach().norm()},
    )  # fmt: skip
    for epoch in run:
        for step in range(12):
            x = torch.randn(8, 6, generator=generator) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            ema.update_parameters(model)
            print("at", run.round, epoch, step, flush=True)
        run.log(loss=loss.item())
    digest = hashlib.sha256()
    for tensor in [
        *model.state_dict().values(),
        *ema.state_dict().values(),
        *run.mask.values(),
        torch.rand(3),
    ]:
        digest.update(tensor.numpy().tobytes())
    digest.update(run.result.trace.values.tobytes())
    digest.update(repr(run.result.to_dict()).encode())
    print("digest", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    warm = nn.Linear(1, 1)  # torch imports half of itself in the first step: once here, not in every run
    warm_optimizer = torch.optim.AdamW(warm.parameters())
    warm(torch.ones(1, 1)).sum().backward()
    warm_optimizer.step()
    for line in iter(sys.stdin.readline, ""):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            print(os.getpid(), flush=True)
            main(*line.split())
            os._exit(0)
        os.waitpid(child, 0)
        print("\nended", flush=True)
