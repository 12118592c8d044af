"""Splits: disjoint, stratified, fixed (trap 9)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewound.tasks.diabetes import read_diabetes
from rewound.tasks.digits import read_digits
from rewound.tasks.splits import Data, hold_out


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_held_out_and_staying_examples_are_all_examples(classes, data):
    classes = torch.tensor(classes)
    n = len(classes)
    size = data.draw(st.integers(1, n - 1))
    stay, held = hold_out(n, size, classes)
    assert len(held) == size
    assert torch.equal(torch.cat([stay, held]).sort().values, torch.arange(n))
    assert torch.equal(stay, stay.sort().values)
    for c in classes.unique():  # each class within one example of its share
        assert abs(int((classes[held] == c).sum()) - int((classes == c).sum()) * size / n) < 1


def test_the_split_does_not_depend_on_the_training_seed():
    torch.manual_seed(1)
    first = hold_out(100, 30)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, hold_out(100, 30)))
    assert not torch.equal(first[1], hold_out(100, 30, seed=1)[1])


@pytest.mark.parametrize("size", [0, 10, 11])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"cannot hold out {size} of 10"):
        hold_out(10, size)


@pytest.mark.parametrize(("read", "sizes"), [(read_digits, (1077, 360, 360)), (read_diabetes, (266, 88, 88))])
def test_bundled_splits_share_no_example(read, sizes):
    data = read()
    splits = [data.train, data.validation, data.test()]
    assert tuple(len(y) for _, y in splits) == sizes
    rows = [{tuple(row) for row in x.flatten(1).tolist()} for x, _ in splits]
    everything = set().union(*rows)
    assert len(everything) == sum(sizes)  # no two examples of these sets are alike, so rows tell them apart
    again = read()
    assert torch.equal(again.validation[0], data.validation[0])


def test_digits_are_stratified():
    data = read_digits()
    for _, labels in (data.train, data.validation, data.test()):
        shares = labels.bincount(minlength=10) / len(labels)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_diabetes_is_standardised_by_its_training_examples():
    x, y = read_diabetes().train
    for values in (x, y):
        assert torch.allclose(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5)
        assert torch.allclose(values.std(0), torch.ones(values.shape[1]), atol=1e-5)
    assert read_diabetes().validation[0].mean().abs() > 1e-4  # not by all examples together


def test_splits_by_name():
    data = Data((torch.zeros(1),) * 2, (torch.ones(1),) * 2, lambda: (torch.full((1,), 2.0),) * 2)
    assert data.split("validation")[0].item() == 1
    assert data.split("test")[0].item() == 2
    with pytest.raises(ValueError, match="'validation' or 'test' \\(got 'train'\\)"):
        data.split("train")
