from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewound.allocation import ALLOCATIONS, Budget, Group, allocate, apportion, as_allocation, lamp
from rewound.mask import Mask
from rewound.pruning import prune


def budget(kept, survivors=None, scores=None, among=None, **shapes):
    shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
    survivors = survivors or {name: shape.numel() for name, shape in shapes.items()}
    return Budget(kept, shapes, survivors, scores or {}, among)


def counts(allocation, given_budget):
    return {group.names[0]: group.kept for group in allocate(as_allocation(allocation), given_budget)}


rooms = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(rooms, st.data())
def test_apportion_is_exact_and_fits(rows, data):
    weights = {str(i): weight for i, (weight, _) in enumerate(rows)}
    room = {str(i): space for i, (_, space) in enumerate(rows)}
    total = data.draw(st.integers(0, sum(room.values())))
    share = apportion(weights, room, total)
    assert sum(share.values()) == total
    assert all(0 <= share[name] <= room[name] for name in room)
    open_ = [name for name in room if share[name] < room[name]]
    for a in open_:  # those with room left have got in proportion, to within a weight
        for b in open_:
            assert abs(share[a] * weights[b] - share[b] * weights[a]) <= max(weights[a], weights[b]) * 2


def test_apportion_by_hand():
    assert apportion({"a": 1, "b": 1, "c": 1}, {"a": 9, "b": 9, "c": 9}, 4) == {"a": 2, "b": 1, "c": 1}
    assert apportion({"a": 10, "b": 1}, {"a": 2, "b": 9}, 5) == {"a": 2, "b": 3}
    with pytest.raises(ValueError, match="cannot split 3 over room for 2"):
        apportion({"a": 1}, {"a": 2}, 3)


def test_uniform_gives_every_tensor_the_same_density():
    assert counts("uniform", budget(30, a=(10, 10), b=(50,))) == {"a": 20, "b": 10}


def test_uniform_hands_on_what_a_tensor_cannot_hold():
    assert counts("uniform", budget(30, survivors={"a": 5, "b": 50}, a=(10, 10), b=(50,))) == {
        "a": 5,
        "b": 25,
    }


def test_erk_by_hand():
    # densities in proportion to (10+10)/100 and (4+8+3+3)/288; 20 k + 18 k = 76 gives k = 2
    assert counts("erk", budget(76, a=(10, 10), b=(4, 8, 3, 3))) == {"a": 40, "b": 36}


def test_erk_caps_at_one_and_rescales():
    # k = 4 would ask for 12 of the 2 weights of a: it stays dense, b takes the rest
    assert counts("erk", budget(92, a=(1, 2), b=(10, 10))) == {"a": 2, "b": 90}


def lamp_by_definition(scores):
    """The paper's formula, one weight at a time."""
    return [s**2 / sum(v**2 for v in scores if v >= s) if s else 0.0 for s in scores]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.5, 1e-3]), min_size=1, max_size=12))
def test_lamp_equals_its_definition(values):
    scores = {"a": torch.tensor(values)}
    (group,) = lamp(budget(1, scores=scores, a=(len(values),)))
    expected = torch.tensor(lamp_by_definition([float(v) for v in scores["a"]]), dtype=torch.float64)
    torch.testing.assert_close(group.ranking["a"], expected, rtol=1e-12, atol=0)


def test_lamp_by_hand():
    # a: 1/1 for 3 (the largest always ranks 1), 1/10 for 1; b: 1 and 16/41
    scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0, 5.0])}
    (group,) = lamp(budget(3, scores=scores, a=(2,), b=(2,)))
    assert group.ranking["a"].tolist() == pytest.approx([1, 1 / 10])
    assert group.ranking["b"].tolist() == pytest.approx([16 / 41, 1])


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.inf, 1.0, 2.0], [1e38, 1e-38, 1e38], [1e-45, 0.0]])
def test_lamp_is_free_of_nan_and_keeps_the_order(values):
    scores = {"a": torch.tensor(values)}
    (group,) = lamp(budget(1, scores=scores, a=(len(values),)))
    assert not group.ranking["a"].isnan().any()
    for s, r in zip(values, group.ranking["a"].tolist()):
        for s2, r2 in zip(values, group.ranking["a"].tolist()):
            assert r >= r2 or s < s2


def test_lamp_does_not_depend_on_the_scale_of_a_tensor(mlp):
    mask = prune(mlp, 0.3, allocation="lamp")
    with torch.no_grad():
        mlp[0].weight *= 1024
    assert prune(mlp, 0.3, allocation="lamp") == mask
    assert prune(mlp, 0.3).densities != mask.densities


def test_lamp_chooses_within_a_tensor_by_the_scores(mlp):
    mask = prune(mlp, 0.3, allocation="lamp")
    for name, keep in mask.items():
        size = mlp.get_parameter(name).detach().abs()
        assert size[keep].min() > size[~keep].max()


def test_lamp_refuses_negative_scores_and_nan(mlp):
    with pytest.raises(ValueError, match="'lamp' squares the scores"):
        lamp(budget(1, scores={"a": torch.tensor([-1.0, 1.0])}, a=(2,)))
    with pytest.raises(ValueError, match="1 of 2 scores of 'a' are NaN"):
        lamp(budget(1, scores={"a": torch.tensor([math.nan, 1.0])}, a=(2,)))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("density", [0.05, 0.333, 0.8, 1.0])
def test_every_allocation_keeps_exactly_the_total(convnet, allocation, density):
    mask = prune(convnet, density, allocation=allocation, example=torch.zeros(1, 1, 6, 6))
    assert mask.kept == round(density * mask.size)


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, {"0.weight": 0.1}])
def test_every_allocation_goes_on_from_a_mask(convnet, allocation):
    mask = Mask((name, torch.ones(p.shape) > 0) for name, p in convnet.named_parameters() if p.ndim > 1)
    size = mask.size
    for _ in range(6):
        kept = mask.kept - round(0.2 * mask.kept)
        smaller = prune(
            convnet, kept / size, allocation=allocation, mask=mask, example=torch.zeros(1, 1, 6, 6)
        )
        assert smaller <= mask
        assert smaller.kept == kept
        mask = smaller


def test_mapping_gives_named_tensors_exactly_that(mlp):
    mask = prune(mlp, 0.5, allocation={"3.weight": 0.9})  # 90 weights: 45, of which 27 of 30
    assert mask.counts == {"0.weight": 18, "3.weight": 27}
    mask = prune(mlp, 0.5, allocation={"*": 0.5})
    assert mask.counts == {"0.weight": 30, "3.weight": 15}


def test_mapping_full_name_goes_before_a_pattern(mlp):
    for mapping in ({"*": 0.5, "3.weight": 0.1}, {"3.weight": 0.1, "*": 0.5}):
        assert prune(mlp, None, allocation=mapping).counts == {"0.weight": 30, "3.weight": 3}


def test_mapping_without_a_total_leaves_the_others(mlp):
    assert prune(mlp, None, allocation={"3.*": 0.1}).counts == {"0.weight": 60, "3.weight": 3}
    start = prune(mlp, 0.5)
    mask = prune(mlp, None, allocation={"3.*": 0.1}, mask=start)
    assert mask.counts == {"0.weight": start.counts["0.weight"], "3.weight": 3}
    assert mask <= start


def test_mapping_errors(mlp):
    with pytest.raises(ValueError, match=r"45 of 90 weights cannot be kept(.|\n)*0.0111111 to 0.344444"):
        prune(mlp, 0.5, allocation={"0.weight": 1 / 60})
    with pytest.raises(ValueError, match=r"matches '3.weigth'; nearest: '3.weight'"):
        prune(mlp, 0.5, allocation={"3.weigth": 0.1})
    with pytest.raises(ValueError, match=r"'3.weight' is given density 0.5 by '\*' and 0.1 by '3.\*'"):
        prune(mlp, 0.5, allocation={"*": 0.5, "3.*": 0.1})
    with pytest.raises(ValueError, match=r"density of '3.weight' must be in \[0, 1\]"):
        prune(mlp, 0.5, allocation={"3.weight": 1.5})
    with pytest.raises(ValueError, match="only 3 of 30 are not pruned yet"):
        prune(mlp, None, allocation={"3.*": 0.2}, mask=prune(mlp, None, allocation={"3.*": 0.1}))
    with pytest.raises(ValueError, match="'density' may be None only"):
        prune(mlp, None)


def test_a_function_of_ones_own(mlp):
    def all_in_the_first(b: Budget):
        first, *others = b.shapes
        return {first: b.kept, **dict.fromkeys(others, 0)}

    assert prune(mlp, 0.5, allocation=all_in_the_first).counts == {"0.weight": 45, "3.weight": 0}


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"a": 1}, ValueError, "every tensor in scope once"),
        ({"a": 1, "b": 1, "c": 1}, ValueError, "every tensor in scope once"),
        ([Group(("a", "b"), 2), Group(("a",), 1)], ValueError, "every tensor in scope once"),
        ({"a": 2, "b": 2}, ValueError, "keeps 4 weights; 3 were asked for"),
        ({"a": 9, "b": -6}, ValueError, "keeps 9 of the 4 survivors of 'a'"),
        ({"a": 1.5, "b": 1.5}, TypeError, "counts as int"),
    ],
)
def test_wrong_answers_are_refused(answer, error, message):
    with pytest.raises(error, match=message):
        allocate(lambda b: answer, budget(3, a=(4,), b=(4,)))


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown allocation 'unifrom': did you mean 'uniform'"):
        as_allocation("unifrom")


def test_a_large_layer_wins_global_and_not_uniform():
    """Trap 15: global magnitude depends on scale and empties a tensor of tiny weights; uniform does not."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight *= 1e-4
    assert prune(model, 0.5).counts == {"0.weight": 0, "1.weight": 16}
    assert prune(model, 0.5, allocation="uniform").counts == {"0.weight": 8, "1.weight": 8}
