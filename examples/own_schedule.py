"""Two parameter groups and a schedule in one's own words: what the optimizer really used is recorded and rewound."""

import os

import torch
from torch import nn

import rewound

EPOCHS = 4 if os.environ.get("REWOUND_QUICK") else 10

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
groups = [{"params": model[0].parameters(), "weight_decay": 1e-3}, {"params": model[2].parameters()}]
optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

technique = rewound.learning_rate_rewinding(EPOCHS // 2)  # or "lr-rewinding:5ep"
run = rewound.Run(model, optimizer, epochs=EPOCHS, technique=technique, until="4 rounds")
for epoch in run:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
    for i, batch in enumerate(order.split(64)):
        progress = (epoch + i / 16) / EPOCHS
        for group, factor in zip(optimizer.param_groups, (1.0, 0.5)):
            group["lr"] = factor * 0.1 * min(1.0, 5 * progress + 0.05) * (1 - progress) ** 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    run.log(accuracy=(model(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
print(run.result)
lr, t = run.result.trace.lr, EPOCHS // 2 * 16
print(
    "the last rounds used the recording's slice:", bool((lr[-t:] == lr[EPOCHS * 16 - t : EPOCHS * 16]).all())
)
