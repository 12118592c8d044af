"""Gradient accumulation with clipping: four micro-batches make one optimizer step, and the norm sees survivors only."""

import os

import torch
from torch import nn

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
targets = inputs[:, :1] * inputs[:, 1:2]  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

run = rewound.Run(model, optimizer, epochs=EPOCHS, until="5x")
for epoch in run:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(128):
        for micro in batch.split(32):
            loss = (model(inputs[micro]) - targets[micro]).square().mean()
            (loss / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    run.log(mse=(model(inputs[1024:]) - targets[1024:]).square().mean())
print(run.result)
