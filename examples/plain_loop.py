"""The three-line use in a plain PyTorch loop: real digits, a small MLP, learning-rate rewinding to 10 % of the weights."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

import rewound

EPOCHS = 3 if os.environ.get("REWOUND_QUICK") else 20

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, held_out = slice(0, 1400), slice(1400, None)

model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [EPOCHS // 2, EPOCHS * 3 // 4], gamma=0.1)

run = rewound.Run(model, optimizer, epochs=EPOCHS, scheduler=scheduler, until=0.1)
print(run.plan)
for epoch in run:  # was: for epoch in range(EPOCHS)
    order = torch.randperm(1400, generator=torch.Generator().manual_seed(epoch))
    for batch in order.split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
        optimizer.step()
    scheduler.step()
    with torch.no_grad():
        correct = model(images[held_out]).argmax(1) == labels[held_out]
    run.log(accuracy=correct.float().mean())
print(run.result)
