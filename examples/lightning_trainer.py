"""Lightning's Trainer: the callback makes ``fit`` train, prune, rewind and retrain. ``max_epochs`` stays the original run's."""

import os
import tempfile

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rewound.integrations.lightning import RewindCallback


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches  # those of the original run
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


lightning.seed_everything(0, verbose=False)
inputs = torch.randn(1280, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter
train, validation = (TensorDataset(inputs[part], labels[part]) for part in (slice(1024), slice(1024, None)))

rewind = RewindCallback(technique="lr-rewinding", until=0.2)  # what rewound.Run takes; run.log is self.log
trainer = lightning.Trainer(
    max_epochs=2 if os.environ.get("REWOUND_QUICK") else 10,
    callbacks=[rewind],
    accelerator="auto",
    devices=1,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=tempfile.mkdtemp(),
)
trainer.fit(Classifier(), DataLoader(train, 64, shuffle=True), DataLoader(validation, 256))
print(rewind.result)
