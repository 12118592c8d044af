"""Hugging Face Accelerate: hand the prepared objects to the run. Start it with ``accelerate launch`` for several GPUs."""

import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

accelerator = Accelerator(gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
loader = DataLoader(TensorDataset(inputs[:1024], labels[:1024]), batch_size=32, shuffle=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader) // 2)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

run = rewound.Run(model, optimizer, epochs=EPOCHS, scheduler=scheduler, until=0.2)
for epoch in run:
    loader.set_epoch(epoch)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    x, y = inputs[1024:].to(accelerator.device), labels[1024:].to(accelerator.device)
    run.log(accuracy=(model(x).argmax(1) == y).float().mean())
accelerator.print(run.result)
