"""Autocast and GradScaler: a step that the scaler skips is neither recorded nor replayed. The scaler is an extra."""

import os

import torch
from torch import nn

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16
inputs = torch.randn(1280, 20, device=device)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * 16)
scaler = torch.amp.GradScaler(device)

run = rewound.Run(model, optimizer, epochs=EPOCHS, scheduler=scheduler, until=0.2, extras=[scaler])
for epoch in run:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(64):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()  # one-cycle has T steps, and the epochs that come again find it wound back
    run.log(accuracy=(model(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
print(run.result)
