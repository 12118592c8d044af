"""Experiment trackers: ``tensorboard``, ``mlflow``, ``wandb``. Each is what a Run calls after every epoch.

    from rewound.integrations.trackers.tensorboard import TensorBoard

    with TensorBoard("logs/mine") as tracker:
        run = rewound.Run(model, optimizer, epochs=12, until=0.05, progress=tracker)
        for epoch in run:
            ...
            run.log(accuracy=evaluate(model))

What it notes, at the number of epochs trained so far: everything that ``run.log`` noted in the epoch, and the round, the density
and the learning rate that the last step really used. Before that, once, the plan. Of several processes the first alone logs.
"""
