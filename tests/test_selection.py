from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewound import selection
from rewound.selection import select_best

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FEW = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -1.0, 0.5, math.inf, -math.inf])  # so that ties abound
ANY = st.floats(allow_nan=False, width=32)


@st.composite
def problems(draw):
    """A list of tensors, a count that they can satisfy, and perhaps a mask."""
    tensors = {}
    for index in range(draw(st.integers(1, 4))):
        values = draw(st.lists(draw(st.sampled_from([FEW, FEW, ANY])), min_size=1, max_size=30))
        tensors[f"t{index}"] = torch.tensor(values, dtype=torch.float64).to(draw(st.sampled_from(DTYPES)))
    among = None
    if draw(st.booleans()):
        among = {n: torch.tensor([draw(st.booleans()) for _ in range(len(t))]) for n, t in tensors.items()}
    able = sum(len(t) if among is None else int(among[n].sum()) for n, t in tensors.items())
    return tensors, draw(st.integers(0, able)), among


def by_full_sort(tensors, count, among):
    """The definition: one stable sort of everything, in float64."""
    flat = torch.cat([t.reshape(-1).double() for t in tensors.values()])
    able = torch.ones(len(flat)) > 0
    if among is not None:
        able = torch.cat([among[name].reshape(-1) for name in tensors])
    places = able.nonzero().reshape(-1)
    kept = torch.zeros(len(flat)) > 0
    kept[places[flat[places].sort(descending=True, stable=True).indices[:count]]] = True
    parts = kept.split([t.numel() for t in tensors.values()])
    return {name: part.reshape(t.shape) for (name, t), part in zip(tensors.items(), parts)}


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_equals_a_full_stable_sort(problem):
    tensors, count, among = problem
    assert same(dict(select_best(tensors, count, among=among)), by_full_sort(tensors, count, among))


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 9), st.integers(1, 12), st.integers(0, 6))
def test_sample_pieces_and_budget_never_change_the_result(problem, piece, sample, collect):
    tensors, count, among = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_PIECE", piece)
        patch.setattr(selection, "_SAMPLE", sample)
        patch.setattr(selection, "_COLLECT", collect)
        ours = dict(select_best(tensors, count, among=among))
    assert same(ours, by_full_sort(tensors, count, among))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_bisection_alone_finds_the_cut(problem):
    tensors, count, among = problem
    sources = selection._exactly([selection._source(tensors, name, among) for name in tensors])
    if count:
        cut = selection._bisected(sources, count, -math.inf, math.inf)
        usual = selection._cut(sources, count)
        assert (cut.threshold, cut.above, cut.equal) == (usual.threshold, usual.above, usual.equal)


LARGE = 1 << 18


@pytest.mark.parametrize("share", [1e-5, 0.1, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("data", ["normal", "half zero", "few values", "all equal", "sorted", "bfloat16"])
def test_large_tensors_with_a_sampled_bracket(data, share, monkeypatch):
    monkeypatch.setattr(selection, "_COLLECT", 1 << 14)
    monkeypatch.setattr(selection, "_SAMPLE", 1 << 13)
    values = torch.randn(LARGE).abs()
    if data == "half zero":
        values[torch.rand(LARGE) < 0.5] = 0
    elif data == "few values":
        values = values.round()
    elif data == "all equal":
        values.fill_(0.25)
    elif data == "sorted":
        values = values.sort().values
    elif data == "bfloat16":
        values = values.bfloat16()
    tensors = {"a": values[: LARGE // 4].reshape(64, -1), "b": values[LARGE // 4 :]}
    count = max(1, round(share * LARGE))
    assert same(dict(select_best(tensors, count)), by_full_sort(tensors, count, None))


def test_a_misleading_sample_is_seen_through(monkeypatch):
    monkeypatch.setattr(selection, "_COLLECT", 16)
    monkeypatch.setattr(selection, "_sampled", lambda sources: torch.full((100,), 1e9))
    tensors = {"a": torch.randn(1000)}
    for count in (1, 300, 999):
        assert same(dict(select_best(tensors, count)), by_full_sort(tensors, count, None))


def test_ties_keep_the_earlier_position():
    tensors = {"b": torch.ones(2, 2), "a": torch.ones(3)}
    kept = {name: mask.tolist() for name, mask in select_best(tensors, 5)}
    assert kept == {"b": [[True, True], [True, True]], "a": [True, False, False]}
    kept = {name: mask.tolist() for name, mask in select_best(tensors, 4, names=("a", "b"))}
    assert kept == {"a": [True, True, True], "b": [[True, False], [False, False]]}


def test_mixed_dtypes_are_compared_exactly():
    third = torch.tensor([1 / 3], dtype=torch.float64)
    tensors = {"half": third.bfloat16(), "single": third.float(), "double": third}
    order = sorted(tensors, key=lambda name: -tensors[name].double().item())
    for count in (1, 2):
        kept = [name for name, mask in select_best(tensors, count) if mask.item()]
        assert sorted(kept) == sorted(order[:count])


def test_scores_read_in_pieces_equal_scores_read_whole():
    class InPieces(dict):
        reads = 0

        def open(self, name):
            flat = super().__getitem__(name).reshape(-1)

            def read(where):
                InPieces.reads += 1
                return flat[where]

            return super().__getitem__(name).shape, read

        def __getitem__(self, name):
            raise AssertionError("read as a whole")

    tensors = {"a": torch.randn(3, 50), "b": torch.randn(70)}
    assert same(dict(select_best(InPieces(tensors), 40)), by_full_sort(tensors, 40, None))
    assert InPieces.reads > 0


def test_nothing_to_select_from():
    assert dict(select_best({}, 0)) == {}
    with pytest.raises(ValueError, match="cannot keep 1 of 0 scores"):
        dict(select_best({}, 1))


def test_more_than_there_are():
    with pytest.raises(ValueError, match="cannot keep 3 of 1 scores"):
        dict(select_best({"a": torch.ones(4)}, 3, among={"a": torch.tensor([True, False, False, False])}))


def test_nan_is_refused_by_name_and_number():
    tensors = {"a": torch.ones(4), "b": torch.tensor([1.0, math.nan, math.nan])}
    with pytest.raises(ValueError, match="2 of 3 scores of 'b' are NaN"):
        dict(select_best(tensors, 3))


def test_nan_under_pruned_weights_and_infinities_of_both_signs_are_fine():
    tensors = {"a": torch.tensor([math.nan, math.inf, -math.inf, 1.0])}
    among = {"a": torch.tensor([False, True, True, True])}
    assert dict(select_best(tensors, 2, among=among))["a"].tolist() == [False, True, False, True]


def test_integer_scores_are_refused():
    with pytest.raises(TypeError, match=r"'a' must be floating point \(got int64\)"):
        dict(select_best({"a": torch.arange(3)}, 1))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="'a' has 3 scores, its mask 2 weights"):
        dict(select_best({"a": torch.ones(3)}, 1, among={"a": torch.ones(2) > 0}))


def test_memory_stays_small(monkeypatch):
    """Nothing as large as the scores is made on the way: the largest new tensor is the mask."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given_storage:
                largest = max(largest, out.numel() * out.element_size())
            return out

    monkeypatch.setattr(selection, "_COLLECT", 1 << 12)
    monkeypatch.setattr(selection, "_SAMPLE", 1 << 12)
    monkeypatch.setattr(selection, "_PIECE", 1 << 12)
    values = torch.randn(1 << 18)
    given_storage = {values.untyped_storage().data_ptr()}
    with Watch():
        masks = dict(select_best({"a": values}, 1 << 16))
    assert int(masks["a"].sum()) == 1 << 16
    assert largest == values.numel()  # the mask: one byte a weight
