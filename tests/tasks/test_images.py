"""ImageNet's folder form on a tiny set of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from rewound.tasks import load_task, train_epoch
from rewound.tasks.images import Images, centre_crop, list_images, load_image, random_resized_crop

OPTIONS = {"width": 4, "size": 32, "resize": 36, "validation": 4, "batch_size": 8, "workers": 0, "epochs": 2}


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    for split, each in (("train", 12), ("val", 3)):
        for c, name in enumerate(("n01", "n02")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 100, (40 + i, 60, 3), dtype=np.uint8) + 120 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{'jpeg' if i % 2 else 'png'}")
    Image.fromarray(np.zeros((50, 40), np.uint8)).save(tmp_path / "train" / "n01" / "grey.png")  # one channel
    (tmp_path / "train" / "n01" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_images_trains(place):
    task = load_task("imagenet", model="resnet-34", folder=place, metrics=["accuracy"], **OPTIONS)
    assert task.steps_per_epoch == 3  # 24 + 1 - 4 images
    model = task.model(0)
    x, y = next(task.batches(0, 0))
    assert (x.shape, y.dtype) == ((8, 3, 32, 32), torch.int64)
    assert model(x).shape == (8, 2)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, 6, 3)
    assert train_epoch(task, model, optimizer, scheduler, 0, 0) > 0
    assert set(task.evaluate(model)) == {"loss", "accuracy"}
    assert set(task.evaluate(model, "test")) == {"loss", "accuracy"}
    with pytest.raises(ValueError, match="'split' cannot be 'train'"):
        task.evaluate(model, "train")


def test_splits_share_no_file(place):
    task = load_task("imagenet", folder=place, **OPTIONS)
    train, validation = task._training_files
    assert len(train) + len(validation) == 25
    assert not {f for f, _ in train} & {f for f, _ in validation}
    assert sorted(label for _, label in validation) == [0, 0, 1, 1]
    assert all("train" in f.parts for f, _ in validation)


def epoch_of(task, epoch, round=0):
    made = list(task.batches(epoch, 0, round))
    return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])


def test_order_and_crops_are_functions_of_seed_and_epoch(place):
    tasks = {
        key: load_task("imagenet", folder=place, **{**OPTIONS, "data_order": key[0], "workers": key[1]})
        for key in (("rewind", 0), ("rewind", 2), ("fresh", 0))
    }
    before = torch.get_rng_state()
    first = epoch_of(tasks["rewind", 0], 0)
    assert torch.equal(torch.get_rng_state(), before)
    for same in (
        epoch_of(tasks["rewind", 2], 0),
        epoch_of(tasks["rewind", 0], 0, 3),
        epoch_of(tasks["fresh", 0], 0),
    ):
        assert torch.equal(same[0], first[0])
        assert torch.equal(same[1], first[1])
    for other in (epoch_of(tasks["rewind", 0], 1), epoch_of(tasks["fresh", 0], 0, 3)):
        assert not torch.equal(other[0], first[0])
    short = load_task("imagenet", folder=place, drop_last=True, **OPTIONS)
    assert len(epoch_of(short, 0)[1]) == 16 == short.steps_per_epoch * 8


def test_each_image_has_crops_of_its_own_in_each_epoch(place):
    files = list_images(place / "val", ("n01", "n02"))
    same = (files[0],) * 2  # one file twice: only the place in the list differs
    keys = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    crops = {(key, i): Images(same, 16, 18, key)[i][0] for key in keys for i in (0, 1)}
    assert len({crop.numpy().tobytes() for crop in crops.values()}) == 8
    assert torch.equal(Images(same, 16, 18, (0, 0, 0))[1][0], crops[(0, 0, 0), 1])
    plain = Images(same, 16, 18)
    assert torch.equal(plain[0][0], plain[1][0])


def test_the_authors_recipe(place):
    task = load_task("imagenet", folder=place, width=4)
    assert (task.epochs, task.batch_size, task.lr, task.metric) == (90, 1024, 0.4, "accuracy")
    model = task.model(0)
    decayed, free = task.optimizer(model).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0)
    assert decayed["nesterov"]
    assert free["nesterov"]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(free["params"]) == 2 * len(norms)
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, 90, 1)
    lrs = []
    for _ in range(90):
        lrs.append(optimizer.param_groups[1]["lr"])
        optimizer.step()
        scheduler.step()
    assert [lrs[e] for e in (0, 4, 5, 29, 30, 60, 80, 89)] == pytest.approx(
        [0, 0.32, 0.4, 0.4, 0.04, 0.004, 0.0004, 0.0004]
    )


def test_crops():
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))
    assert centre_crop(image, 24, 30).size == (24, 24)
    assert np.array_equal(np.array(centre_crop(image, 40, 40)), np.array(image)[:, 10:50])
    noise = torch.Generator().manual_seed(0)
    crops = [random_resized_crop(image, 16, noise) for _ in range(20)]
    assert {crop.size for crop in crops} == {(16, 16)}
    assert len({crop.tobytes() for crop in crops}) == 20
    sliver = Image.new("RGB", (1, 400))  # no crop of fair sides fits: the middle is taken
    assert random_resized_crop(sliver, 16, noise).size == (16, 16)


def test_damaged_and_missing_images_are_named(place):
    whole = (place / "train" / "n01" / "0.png").read_bytes()
    (place / "train" / "n01" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        load_image(place / "train" / "n01" / "0.png")
    (place / "train" / "n01" / "0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        Images(((place / "train" / "n01" / "0.png", 0),), 8, 8)[0]
    (place / "val" / "n03").mkdir()
    with pytest.raises(ValueError, match="the class 'n03', which the training images do not have"):
        list_images(place / "val", ("n01", "n02"))
    with pytest.raises(FileNotFoundError, match="n03 holds no images"):
        list_images(place / "val", ("n01", "n02", "n03"))
    with pytest.raises(FileNotFoundError, match="holds no subfolder"):
        list_images(place / "val" / "n01", ("a",))
