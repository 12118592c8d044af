"""A model under torch.compile: names, masks and states are those of the user's own module."""

import os

import torch
from torch import nn

import rewound

QUICK = bool(os.environ.get("REWOUND_QUICK"))
EPOCHS = 2 if QUICK else 10

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
compiled = torch.compile(model, backend="aot_eager" if QUICK else "inductor")
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

run = rewound.Run(compiled, optimizer, epochs=EPOCHS, until=0.2)
for epoch in run:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    run.log(accuracy=(compiled(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
print(run.result)
print(run.mask)
