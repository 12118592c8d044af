from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewound.mask import Mask


def mask_of(*rows, name="weight"):
    return Mask({name: torch.tensor(rows, dtype=torch.bool)})


def test_counts_by_hand():
    mask = Mask({"a": torch.tensor([[1, 0], [1, 1]]) > 0, "b": torch.tensor([0, 1]) > 0})
    assert (mask.kept, mask.size, mask.density) == (4, 6, 4 / 6)
    assert mask.counts == {"a": 3, "b": 1}
    assert mask.densities == {"a": 0.75, "b": 0.5}
    assert list(mask) == ["a", "b"]
    assert repr(mask) == "Mask(density 0.667, 2 tensors, 4 of 6 kept)"
    assert str(mask).splitlines()[1].split() == ["a", "2x2", "3", "4", "0.7500"]
    assert str(mask).splitlines()[-1].split() == ["all", "4", "6", "0.6667"]


def test_owns_its_tensors():
    given_tensor = torch.tensor([True, False])
    mask = Mask({"a": given_tensor})
    given_tensor.fill_(False)
    assert mask["a"].tolist() == [True, False]


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True]])
def test_takes_bool_only(bad):
    with pytest.raises(TypeError, match="'a' must be a bool tensor"):
        Mask({"a": bad})


def test_empty_masks_are_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        Mask({})
    with pytest.raises(ValueError, match="'a' is empty"):
        Mask({"a": torch.ones(0, dtype=torch.bool)})


def test_order_and_set_operations():
    big, small, other = mask_of(1, 1, 0), mask_of(1, 0, 0), mask_of(0, 0, 1)
    assert small <= big
    assert big >= small
    assert big <= big
    assert not big <= small
    assert not small <= other
    assert (big & small) == small
    assert (small | other) == mask_of(1, 0, 1)
    assert big != small
    assert big != "big"


def test_equality_ignores_the_order_of_names():
    a, b = torch.tensor([True]), torch.tensor([False, True])
    assert Mask({"a": a, "b": b}) == Mask({"b": b, "a": a})
    assert Mask({"a": a, "b": b}).fingerprint == Mask({"b": b, "a": a}).fingerprint


def test_different_tensors_cannot_be_combined():
    with pytest.raises(ValueError, match="only one of them has 'a', 'b'"):
        mask_of(1, name="a") & mask_of(1, name="b")
    with pytest.raises(ValueError, match="equal shapes"):
        mask_of(1) | mask_of(1, 1)
    with pytest.raises(TypeError, match="needs a Mask on both sides"):
        mask_of(1) <= 3  # noqa: B015


def test_fingerprint_tells_names_shapes_and_bits_apart():
    prints = {
        Mask({"a": torch.ones(2, 3, dtype=torch.bool)}).fingerprint,
        Mask({"b": torch.ones(2, 3, dtype=torch.bool)}).fingerprint,
        Mask({"a": torch.ones(3, 2, dtype=torch.bool)}).fingerprint,
        Mask({"a": torch.zeros(2, 3, dtype=torch.bool)}).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_zeroes_and_nothing_else(dtype):
    layer = nn.Linear(3, 2).to(dtype)
    before = copy.deepcopy(layer.state_dict())
    keep = torch.tensor([[True, False, True], [False, True, True]])
    Mask({"weight": keep}).apply_(layer)
    assert torch.equal(layer.weight == 0, ~keep)
    assert torch.equal(layer.weight[keep], before["weight"][keep])
    assert torch.equal(layer.bias, before["bias"])


def test_apply_clears_nan_and_inf_under_pruned_weights():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[float("nan"), 2.0]])
    mask_of([0, 1]).apply_(layer)
    assert layer.weight.tolist() == [[0.0, 2.0]]


def test_apply_reaches_wrapped_and_averaged_models():
    layer = nn.Linear(2, 1)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    for model in (averaged, torch.compile(layer, backend="eager"), nn.DataParallel(layer)):
        mask_of([0, 1]).apply_(model)
    assert averaged.module.weight[0, 0] == 0
    assert layer.weight[0, 0] == 0


def test_apply_finds_a_tied_tensor_under_either_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    Mask({"1.weight": torch.eye(2) > 0}).apply_(model)
    assert torch.equal(model[0].weight != 0, torch.eye(2) > 0)


def test_apply_changes_nothing_if_the_model_does_not_fit():
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"no such parameter \(nearest: '0.weight'"):
        Mask({"0.weight": torch.zeros(2, 2) > 0, "0.weigth": torch.zeros(2, 2) > 0}).apply_(model)
    with pytest.raises(ValueError, match="belongs to another model"):
        Mask({"0.weight": torch.zeros(2, 3) > 0}).apply_(model)
    assert torch.equal(model[0].weight, before)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=4))
def test_plain_round_trip(rows):
    mask = Mask({f"t{i}": torch.tensor(row) for i, row in enumerate(rows)})
    again = Mask.from_plain(mask.to_plain())
    assert again == mask
    assert list(again) == list(mask)
    assert again.fingerprint == mask.fingerprint


def test_file_is_bit_packed_and_loads_without_pickled_code(tmp_path):
    mask = Mask({"a": torch.rand(100, 100) > 0.5})
    mask.save(tmp_path / "mask.pt")
    assert (tmp_path / "mask.pt").stat().st_size < 10_000 / 8 + 3_000
    assert torch.load(tmp_path / "mask.pt", weights_only=True)["names"] == ["a"]
    assert Mask.load(tmp_path / "mask.pt") == mask
    assert [p.name for p in tmp_path.iterdir()] == ["mask.pt"]


def test_every_truncation_and_foreign_files_are_recognised(tmp_path):
    path = tmp_path / "mask.pt"
    Mask({"a": torch.rand(64) > 0.5}).save(path)
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"mask\.pt"):
            Mask.load(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a mask"):
        Mask.load(path)
    with pytest.raises(FileNotFoundError):
        Mask.load(tmp_path / "none.pt")


def test_altered_bits_are_recognised():
    plain = Mask({"a": torch.rand(64) > 0.5}).to_plain()
    plain["bits"][0] = plain["bits"][0] ^ 1
    with pytest.raises(ValueError, match="altered"):
        Mask.from_plain(plain)
    plain["bits"][0] = plain["bits"][0][:3]
    with pytest.raises(ValueError, match="damaged"):
        Mask.from_plain(plain)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mask.pt"
    old, new = mask_of(1, 0), mask_of(0, 1)
    old.save(path)

    def failing(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        new.save(path)
    monkeypatch.undo()
    assert Mask.load(path) == old
    assert len(list(tmp_path.iterdir())) == 1


def test_units_are_told_beside_the_weights(tmp_path):
    tensors = {"a": torch.tensor([[1, 0], [0, 0]]) > 0, "b": torch.tensor([1, 1]) > 0}
    mask = Mask(tensors, units={"conv": (1, 2), "fc": (2, 2)})
    assert (mask.units_kept, mask.units_size, mask.unit_density) == (3, 4, 0.75)
    assert dict(mask.units) == {"conv": (1, 2), "fc": (2, 2)}
    assert repr(mask) == "Mask(density 0.500, 2 tensors, 3 of 6 kept; 0.750 of units, 3 of 4)"
    assert str(mask).splitlines()[-1] == "units of fc: 2 of 2"
    mask.save(tmp_path / "mask.pt")
    for again in (Mask.load(tmp_path / "mask.pt"), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert again == mask
        assert again.units == mask.units
    plain = Mask(tensors)
    assert (plain.units, plain.unit_density, plain.units_kept) == (None, None, None)
    assert "units" not in plain.to_plain()
    assert plain == mask  # equality and fingerprint are the tensors'
    assert plain.fingerprint == mask.fingerprint
    with pytest.raises(TypeError):
        mask.units["conv"] = (2, 2)


def test_units_survive_and_and_or_only_where_they_are_still_true():
    big = Mask({"a": torch.tensor([True, True, True, False])}, units={"a": (3, 4)})
    small = Mask({"a": torch.tensor([True, False, True, False])}, units={"a": (2, 4)})
    other = Mask({"a": torch.tensor([False, True, True, False])}, units={"a": (2, 4)})
    assert (big & small).units == small.units
    assert (small & big).units == small.units
    assert (small | big).units == big.units
    assert (small & small).units == small.units
    assert (small & other).units is None  # one unit is left, and neither side says so
    assert (small | other).units is None


@pytest.mark.parametrize("pair", [(3, 2), (-1, 2), (1, 0), (1.0, 2), (1,), (1, 2, 3)])
def test_impossible_units_are_refused(pair):
    with pytest.raises((ValueError, TypeError)):
        Mask({"a": torch.ones(2) > 0}, units={"a": pair})
    plain = Mask({"a": torch.ones(2) > 0}, units={"a": (1, 2)}).to_plain()
    plain["units"]["a"] = list(pair)
    with pytest.raises(ValueError, match="not a mask, or a damaged one"):
        Mask.from_plain(plain)
