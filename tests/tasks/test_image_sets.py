"""Fashion-MNIST and CIFAR-10 from small files of the same format."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from rewound.tasks import load_task, train_epoch
from rewound.tasks.cifar10 import RECIPE, standardised
from rewound.tasks.fashion_mnist import DEBIAN, PARTS, fashion_mnist, normalised

RNG = np.random.default_rng(0)


def write_fashion(folder, train=300, test=50, pack=True):
    folder.mkdir(parents=True)
    for n, (images, labels) in ((train, PARTS[:2]), (test, PARTS[2:])):
        y = (np.arange(n) % 10).astype(np.uint8)
        x = RNG.integers(0, 100, (n, 28, 28), dtype=np.uint8)
        x[np.arange(n), y * 2] = 255  # a class is a bright row
        files = {images: b"\0\0\x08\3" + struct.pack(">3I", n, 28, 28) + x.tobytes()}
        files[labels] = b"\0\0\x08\1" + struct.pack(">I", n) + y.tobytes()
        for name, content in files.items():
            (folder / (f"{name}.gz" if pack else name)).write_bytes(
                gzip.compress(content) if pack else content
            )


def write_cifar(folder, kind, each=40):
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = (np.arange(each) % 10).astype(np.uint8)
        pixels = RNG.integers(0, 256, (each, 3072), dtype=np.uint8)
        if kind == "bin":
            (folder / f"{name}.bin").write_bytes(np.hstack([labels[:, None], pixels]).tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, 2))


@pytest.mark.parametrize("pack", [True, False])
def test_fashion_mnist_from_its_files(tmp_path, monkeypatch, pack):
    write_fashion(tmp_path / "fashion-mnist", pack=pack)
    monkeypatch.setenv("REWOUND_DATA", str(tmp_path))
    task = load_task("fashion-mnist", validation=100, epochs=2, lr=0.02, batch_size=20)
    assert task.steps_per_epoch == 10
    x, y = next(task.batches(0, 0))
    assert (x.shape, x.dtype, y.dtype) == ((20, 1, 28, 28), torch.float32, torch.int64)
    model = task.model(0)
    optimizer = task.optimizer(model)
    losses = [train_epoch(task, model, optimizer, None, epoch, seed=0) for epoch in range(4)]
    assert losses[-1] < losses[0] / 2
    assert task.evaluate(model)["accuracy"] > 0.8
    assert len(task.data.test()[1]) == 50


def test_test_files_are_not_opened_for_validation(tmp_path):  # trap 9
    write_fashion(tmp_path / "f")
    for name in PARTS[2:]:
        (tmp_path / "f" / f"{name}.gz").write_bytes(b"not read")
    task = fashion_mnist(folder=tmp_path / "f", validation=100)
    model = task.model(0)
    train_epoch(task, model, task.optimizer(model), None, 0, 0)
    assert task.evaluate(model)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not an idx file"):
        task.evaluate(model, "test")


def test_subsets_are_stratified_and_fixed(tmp_path):
    write_fashion(tmp_path / "f")
    small, whole = (fashion_mnist(folder=tmp_path / "f", validation=100, subset=n).data for n in (50, None))
    assert small.train[1].bincount().tolist() == [5] * 10
    assert torch.equal(small.validation[0], whole.validation[0])
    rows = {tuple(row) for row in whole.train[0].flatten(1).tolist()}
    assert all(tuple(row) in rows for row in small.train[0].flatten(1).tolist())


def test_smaller_images_are_the_means_of_the_larger_in_every_split(tmp_path):
    write_fashion(tmp_path / "f")
    small, whole = (
        fashion_mnist("resnet-14-narrow", folder=tmp_path / "f", validation=100, size=n) for n in (14, 28)
    )
    splits = ([data.train, data.validation, data.split("test")] for data in (small.data, whole.data))
    for (x, y), (larger, labels) in zip(*splits):
        means = larger.float().reshape(-1, 1, 14, 2, 14, 2).mean(dim=(3, 5))
        assert x.dtype == torch.uint8
        assert torch.equal(y, labels) and torch.equal(x, means.round().to(torch.uint8))
    assert small.model(0)(normalised(small.data.train[0][:3])).shape == (3, 10)
    with pytest.raises(ValueError, match=r"'size' must be 28.* \(got 14 for 'lenet-5'\)"):
        fashion_mnist("lenet-5", folder=tmp_path / "f", size=14)
    with pytest.raises(ValueError, match=r"got 29 for"):
        fashion_mnist("resnet-20", folder=tmp_path / "f", size=29)


@pytest.mark.parametrize("model", ["lenet-300-100", "lenet-5", "resnet-20"])
def test_models_of_fashion_mnist(tmp_path, model):
    write_fashion(tmp_path / "f")
    task = fashion_mnist(model, folder=tmp_path / "f", validation=100, batch_size=8)
    network = task.model(0)
    x, y = next(task.batches(0, 0))
    assert torch.isfinite(task.loss(network(x), y))
    optimizer = task.optimizer(network)
    scheduler = task.scheduler(optimizer, task.epochs, 1)
    for _ in range(task.epochs - 1):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 1e-3 * task.lr  # fine-tuning goes on with it


def test_inconsistent_files_are_named(tmp_path):
    write_fashion(tmp_path / "f")
    short = b"\0\0\x08\1" + struct.pack(">I", 3) + bytes(3)
    (tmp_path / "f" / f"{PARTS[1]}.gz").write_bytes(gzip.compress(short))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: labels must be 300 numbers"):
        _ = fashion_mnist(folder=tmp_path / "f").data
    wide = b"\0\0\x08\3" + struct.pack(">3I", 1, 2, 2) + bytes(4)
    (tmp_path / "f" / f"{PARTS[0]}.gz").write_bytes(gzip.compress(wide))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: images must be"):
        _ = fashion_mnist(folder=tmp_path / "f").data


def test_the_debian_package_is_found_or_its_absence_explained(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REWOUND_DATA", raising=False)
    if (Path(DEBIAN) / f"{PARTS[0]}.gz").exists():
        data = load_task("fashion-mnist").data
        assert data.train[0].shape == (55_000, 1, 28, 28)
        assert data.validation[1].bincount().tolist() == [500] * 10
        pixels = normalised(data.train[0][:5000])
        assert abs(float(pixels.mean())) < 0.02
        assert abs(float(pixels.std()) - 1) < 0.02
    else:
        with pytest.raises(FileNotFoundError, match="fashion-mnist is not there: get the files train-images"):
            load_task("fashion-mnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10", "imagenet"])
def test_missing_files_say_what_to_get_and_where_to_put_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("REWOUND_DATA", str(tmp_path / "sets"))
    empty = tmp_path / "empty"
    with pytest.raises(FileNotFoundError, match=f"{name} is not there: get .* and put it in .*empty$"):
        load_task(name, folder=empty)
    if name != "fashion-mnist":
        with pytest.raises(FileNotFoundError) as error:
            load_task(name)
        assert str(tmp_path / "sets" / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "subfolder"), [("bin", "cifar-10-batches-bin"), ("py", "cifar-10-batches-py"), ("py", ".")]
)
def test_cifar_10_from_its_files(tmp_path, monkeypatch, kind, subfolder):
    write_cifar(tmp_path / "data" / "cifar-10" / subfolder, kind)
    monkeypatch.delenv("REWOUND_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    task = load_task("cifar-10", validation=50, batch_size=32)
    assert task.steps_per_epoch == 5
    x, _ = next(task.batches(0, 0))
    assert x.shape == (32, 3, 32, 32)
    assert torch.allclose(x.mean((1, 2, 3)), torch.zeros(32), atol=1e-4)
    assert torch.isfinite(task.loss(task.model(0)(x), torch.zeros(32).long()))
    assert len(task.data.test()[1]) == 40
    assert set(task.evaluate(task.model(0))) == {"loss", "accuracy"}


def test_a_missing_cifar_batch_is_named(tmp_path):
    write_cifar(tmp_path / "c", "bin")
    (tmp_path / "c" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is not there"):
        _ = load_task("cifar-10", folder=tmp_path / "c").data


@pytest.mark.parametrize("model", ["resnet-20", "resnet-56", "resnet-110", "vgg-16"])
def test_the_authors_recipe(tmp_path, model):
    write_cifar(tmp_path / "c", "bin")
    task = load_task("cifar-10", folder=tmp_path / "c", model=model)
    (group,) = task.optimizer(task.model(0)).param_groups  # weight decay on everything
    wanted = {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4 if model == "vgg-16" else 2e-4,
    }
    assert {k: group[k] for k in wanted} == wanted
    assert (task.epochs, task.batch_size) == (182, 128)
    assert [round(182 * at) for at in RECIPE["decay_at"]] == [91, 136]
    norms = [m for m in task.model(0).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.003, 1e-5)}


def test_standardisation_survives_a_plain_image():
    assert torch.equal(
        standardised(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)), torch.zeros(1, 3, 32, 32)
    )
