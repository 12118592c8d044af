"""A run in a folder: kill this script at any instant and start it again, and it goes on where it was, bit for bit."""

import os
import sys
import tempfile

import torch
from torch import nn

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10
folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(tempfile.mkdtemp(), "run")

torch.manual_seed(0)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter


def train(give_up_in_round=None):
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = rewound.Run(model, optimizer, epochs=EPOCHS, until="3 rounds", folder=folder)
    for epoch in run:
        print(f"round {run.round} epoch {epoch}")
        if run.round == give_up_in_round:
            return None
        order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        run.log(accuracy=(model(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
    return run.result


train(give_up_in_round=2)
print(f"stopped in the middle; the same again, from {folder}")
print(train())
