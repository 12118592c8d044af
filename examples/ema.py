"""An exponential moving average of the weights: named as an extra, it obeys the mask, and rewinds with the weights."""

import os

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rewound

EPOCHS = 3 if os.environ.get("REWOUND_QUICK") else 10

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

technique = rewound.weight_rewinding(EPOCHS - 1)
run = rewound.Run(model, optimizer, epochs=EPOCHS, technique=technique, until=0.2, extras=[average])
for epoch in run:
    model.train()
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        average.update_parameters(model)
    average.eval()
    run.log(accuracy=(average(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
print(run.result)
zeros = sum(int((p == 0).sum()) for p in average.module.parameters() if p.ndim > 1)
print(f"{zeros} weights of the average are zero, as the mask says: {run.mask!r}")
