"""The trackers, each against the real library writing into a local folder."""

from __future__ import annotations

import importlib
import json
import re
import struct
import sys

import pytest
import torch
from torch import nn

import rewound
from rewound.integrations.trackers.entries import epochs_trained, scalars

T = 3


def train(
    progress,
    until="2 rounds",
    technique="lr-rewinding:2ep",
    folder=None,
    stop_after=None,
    groups=1,
    **options,
):
    """Train a Run of 3 + 2 + 2 epochs; ``lr-rewinding:2ep`` rewinds the clock to epoch 1."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    parts = [{"params": [p], "lr": 0.1 / (k + 1)} for k, p in enumerate(model.parameters())]
    optimizer = torch.optim.SGD(model.parameters() if groups == 1 else parts, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run = rewound.Run(
        model,
        optimizer,
        epochs=T,
        technique=technique,
        until=until,
        scheduler=scheduler,
        progress=progress,
        folder=folder,
        **options,
    )
    x = torch.randn(8, 6)
    for count, epoch in enumerate(run, 1):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.log(loss=loss, clock=epoch)
        if count == stop_after:
            raise RuntimeError("killed")
    return run


@pytest.fixture(scope="module")
def expected():
    """What every tracker has to hold: step -> name -> value."""
    found = {}
    train(lambda run: found.__setitem__(epochs_trained(run), scalars(run)))
    return found


def values(expected, name):
    return [(step, pytest.approx(entry[name], rel=1e-6)) for step, entry in expected.items()]


def test_steps_rise_where_the_clock_rewinds(expected):
    assert list(expected) == [1, 2, 3, 4, 5, 6, 7]
    assert [entry["clock"] for entry in expected.values()] == [0, 1, 2, 1, 2, 1, 2]
    assert [entry["round"] for entry in expected.values()] == [0, 0, 0, 1, 1, 2, 2]


def test_the_rate_is_that_of_the_last_step_not_the_next(expected):
    assert [entry["lr"] for entry in expected.values()] == [0.1, 0.05, 0.025, 0.05, 0.025, 0.05, 0.025]


def test_density_is_that_of_the_round(expected):
    assert [entry["density"] for entry in expected.values()][2:4] == [1.0, pytest.approx(19 / 24)]


def test_every_group_has_its_rate():
    found = []
    train(lambda run: found.append(scalars(run)), groups=2)
    assert (found[0]["lr/0"], found[0]["lr/1"]) == (0.1, 0.05) and "lr" not in found[0]


def test_a_metric_of_the_users_goes_first():
    found = []

    def note(run):
        run._log[-1]["density"] = 7.0
        found.append(scalars(run))

    train(note, until="1 round")
    assert found[0]["density"] == 7.0


def test_a_run_that_arrives_trained_counts_from_its_first_retraining():
    found = []
    train(
        lambda run: found.append(epochs_trained(run)),
        until="1 round",
        technique="fine-tuning:2ep",
        pretrained=True,
    )
    assert found == [1, 2]


def test_a_run_before_its_first_step_has_no_rate():
    model = nn.Linear(4, 2)
    run = rewound.Run(model, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, until=0.5)
    assert run.lr == ()


@pytest.mark.parametrize(
    ("module", "name", "needs"),
    [
        ("tensorboard", "TensorBoard", "torch.utils.tensorboard"),
        ("mlflow", "MLflow", "mlflow"),
        ("wandb", "WandB", "wandb"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, module, name, needs):
    monkeypatch.setitem(sys.modules, needs, None)
    tracker = getattr(importlib.import_module(f"rewound.integrations.trackers.{module}"), name)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'rewound[{module}]'")):
        tracker("mine")


# ---- TensorBoard --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from rewound.integrations.trackers.tensorboard import TensorBoard

    return TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_holds_every_epoch(tensorboard, tmp_path, expected):
    with tensorboard(tmp_path) as tracker:
        train(tracker)
    found = events(tmp_path)
    assert set(found.Tags()["scalars"]) == {"loss", "clock", "round", "density", "lr"}
    for name in found.Tags()["scalars"]:
        assert [(e.step, e.value) for e in found.Scalars(name)] == values(expected, name)
    assert "lr-rewinding:2ep" in found.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_goes_on_where_the_run_does(tensorboard, tmp_path, expected):
    with pytest.raises(RuntimeError, match="killed"), tensorboard(tmp_path / "logs") as tracker:
        train(tracker, folder=tmp_path / "run", stop_after=5)
    with tensorboard(tmp_path / "logs") as tracker:
        train(tracker, folder=tmp_path / "run")
    found = events(tmp_path / "logs").Scalars("loss")
    assert [(e.step, e.value) for e in found] == values(expected, "loss")  # each step once


# ---- MLflow -------------------------------------------------------------------------------------------------------------


quiet = pytest.mark.filterwarnings("default")  # MLflow's own code meets deprecations of SQLAlchemy


@pytest.fixture
def mlflow(tmp_path):
    library = pytest.importorskip("mlflow", reason="needs the extra 'mlflow'")
    from rewound.integrations.trackers.mlflow import MLflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return lambda *given, **named: MLflow(*given, uri=uri, **named), library.MlflowClient(tracking_uri=uri)


@quiet
def test_mlflow_holds_every_epoch(mlflow, tmp_path, expected):
    tracker_of, client = mlflow
    with tracker_of("digits", name="mine") as tracker:
        train(tracker)
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "mine"
    assert client.get_experiment(found.info.experiment_id).name == "digits"
    assert found.data.params["technique"] == "lr-rewinding:2ep" and found.data.params["rounds"] == "2"
    for name in ("loss", "round", "density", "lr"):
        assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, name)] == values(
            expected, name
        )


@quiet
def test_mlflow_goes_on_in_a_run_and_tells_a_failure(mlflow, tmp_path, expected):
    tracker_of, client = mlflow
    with pytest.raises(RuntimeError, match="killed"), tracker_of("digits") as tracker:
        train(tracker, folder=tmp_path / "run", stop_after=4)
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    with tracker_of("digits", run_id=tracker.run_id) as again:
        train(again, folder=tmp_path / "run")
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    history = {m.step: m.value for m in client.get_metric_history(tracker.run_id, "loss")}
    assert sorted(history.items()) == values(expected, "loss")


@quiet
def test_mlflow_takes_names_that_it_knows(mlflow, tmp_path):
    tracker_of, client = mlflow

    with tracker_of("digits") as tracker:

        def note(run):
            run._log[-1]["top-5 (%)"] = 1.0
            tracker(run)

        train(note, until="1 round")
    assert "top-5 ___" in client.get_run(tracker.run_id).data.metrics


# ---- Weights & Biases ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="needs the extra 'wandb'")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    from rewound.integrations.trackers.wandb import WandB

    return WandB


def records(data):
    """The records of an offline file: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    place, parts = 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history_of(folder):
    """Read the offline file back: step -> name -> value, and the config."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    history, config = {}, {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            config.update({u.key: json.loads(u.value_json) for u in record.run.config.update})
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = items.pop("_step", record.history.step.num)
            history[step] = {key: value for key, value in items.items() if not key.startswith("_")}
    return history, config


def test_wandb_holds_every_epoch_offline(wandb, tmp_path, expected):
    with wandb("digits", mode="offline", dir=str(tmp_path), config={"mine": 1}) as tracker:
        train(tracker)
    history, config = history_of(tmp_path)
    assert set(next(iter(history.values()))) == {"loss", "clock", "round", "density", "lr"}
    for name in ("loss", "round", "density", "lr"):
        assert [(step, entry[name]) for step, entry in history.items()] == values(expected, name)
    assert config["technique"] == "lr-rewinding:2ep" and config["mine"] == 1
