"""Lightning Fabric: hand what ``fabric.setup`` returned to the run."""

import os

import lightning
import torch
from torch import nn

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10

fabric = lightning.Fabric(accelerator="auto", devices=1)
fabric.seed_everything(0, verbose=False)
inputs = torch.randn(1280, 20, device=fabric.device)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer = fabric.setup(model, optimizer)

run = rewound.Run(model, optimizer, epochs=EPOCHS, until=0.2)
for epoch in run:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(64):
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(inputs[batch]), labels[batch]))
        optimizer.step()
    run.log(accuracy=(model(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
fabric.print(run.result)
