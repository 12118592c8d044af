"""Two processes with DistributedDataParallel: all ranks prune alike. With GPUs, start it with ``torchrun`` instead."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn

import rewound

EPOCHS = 2 if os.environ.get("REWOUND_QUICK") else 10


def main(rank: int, meeting_place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    torch.manual_seed(0)
    inputs = torch.randn(1280, 20)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()  # the other 18 inputs do not matter

    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    model = nn.parallel.DistributedDataParallel(model)  # or, for sharded parameters: fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    run = rewound.Run(model, optimizer, epochs=EPOCHS, until=0.2)
    for epoch in run:
        order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            mine = batch[rank::2]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[mine]), labels[mine]).backward()
            optimizer.step()
        run.log(accuracy=(model(inputs[1024:]).argmax(1) == labels[1024:]).float().mean())
    print(f"rank {rank} has the mask {run.mask.fingerprint[:12]}", flush=True)
    if rank == 0:
        print(run.result, flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = os.path.join(tempfile.mkdtemp(), "meeting")
    torch.multiprocessing.spawn(main, (place,), nprocs=2)
