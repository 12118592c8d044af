"""Atoms against Python sets: every fact that was recorded holds, whichever free atoms leave, and nothing is tied without need."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewound.compaction.atoms import Atoms, Cells, joined, merged, untracked
from rewound.compaction.grids import settle_grids

_SIZES = (1, 2, 3, 4, 6, 8, 12)
_MOST = 24


class Facts:
    """What was asked of the atoms, said in Python's own words. A leaving entry is a member of the set ``gone``."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.axes: list[Cells] = []
        self.facts: list = []

    def leaves(self, row: Cells, gone: set[int]) -> bool:
        """Whether an entry leaves: any of its atoms does; an atom that is a product does if a part does."""
        return any(atom in gone for atom in self.atoms.resolve(row[None])[0].tolist())

    def gone_of(self, axis: Cells, gone: set[int]) -> list[bool]:
        return [self.leaves(row, gone) for row in axis]

    def free(self) -> list[int]:
        """All atoms that may leave, each by itself."""
        roots = {int(atom) for axis in self.axes for atom in self.atoms.resolve(axis).ravel()} - {0}
        return sorted(atom for atom in roots if not self.atoms.why(np.array([atom]))[0])

    # ---- what can be asked ---------------------------------------------------------------------------------

    def split(self, axis: Cells, outer: int) -> None:
        inner = len(axis) // outer
        rows, columns = self.atoms.split(axis, outer, inner)
        self.axes += [rows, columns]

        def is_a_rectangle(gone: set[int]) -> bool:
            by_row, by_column = self.gone_of(rows, gone), self.gone_of(columns, gone)
            return self.gone_of(axis, gone) == [r or c for r in by_row for c in by_column]

        self.facts.append(is_a_rectangle)

    def unify(self, a: Cells, b: Cells) -> None:
        self.atoms.unify(a, b, "met another axis")
        self.facts.append(lambda gone: self.gone_of(a, gone) == self.gone_of(b, gone))

    def fix(self, axis: Cells) -> None:
        self.atoms.fix(axis, "fixed")
        self.facts.append(lambda gone: not any(self.gone_of(axis, gone)))

    def mark(self, axis: Cells, level: int) -> None:
        self.atoms.mark(axis, level, f"level {level}")

        def is_at_best(gone: set[int]) -> bool:
            members = [atom for row in self.atoms.resolve(axis).tolist() for atom in row if atom]
            return all(self.atoms.level(np.array([atom]))[0] >= level for atom in members)

        self.facts.append(is_at_best)

    def be(self, axis: Cells, kind: int) -> None:
        self.atoms.be(axis, kind)

        def has_the_kind(gone: set[int]) -> bool:
            members = [atom for row in self.atoms.resolve(axis).tolist() for atom in row if atom]
            return all(self.atoms.kind(np.array([atom]))[0] & kind for atom in members)

        self.facts.append(has_the_kind)

    def tie_rows(self, axis: Cells) -> None:
        before = self.atoms.resolve(axis).tolist()
        self.atoms.tie_rows(axis)

        def leave_together(gone: set[int]) -> bool:
            each = [{self.leaves(np.array([atom]), gone) for atom in row if atom} for row in before]
            return all(len(answers) < 2 for answers in each)

        self.facts.append(leave_together)

    # ---- what must hold ------------------------------------------------------------------------------------

    def hold(self, gone: set[int]) -> bool:
        return all(fact(gone) for fact in self.facts)


@st.composite
def programs(draw) -> Facts:
    """Axes of new atoms; then reshapes, concatenations, repetitions (grouped queries), pieces, and axes that meet."""
    known = Facts()

    def new() -> Cells:
        return known.atoms.fresh(draw(st.sampled_from(_SIZES)))[:, None]

    known.axes += [new() for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(1, 9))):
        axis = draw(st.sampled_from(known.axes))
        n = len(axis)
        step = draw(st.sampled_from(_STEPS))
        if step == "fresh":
            known.axes.append(new())
        elif step == "split":
            known.split(axis, draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0])))
        elif step in ("merge", "join"):
            other = draw(st.sampled_from(known.axes))
            if (n * len(other) if step == "merge" else n + len(other)) <= _MOST:
                known.axes.append(merged(axis, other) if step == "merge" else joined([axis, other]))
        elif step == "piece":
            start = draw(st.integers(0, n - 1))
            known.axes.append(axis[start : draw(st.integers(start + 1, n))])
        elif step in ("repeat", "tile"):
            times = draw(st.integers(2, 3))
            if times * n <= _MOST:
                known.axes.append(
                    np.repeat(axis, times, axis=0) if step == "repeat" else np.tile(axis, (times, 1))
                )
        elif step == "permute":
            known.axes.append(axis[draw(st.permutations(range(n)))])
        elif step == "plain":
            known.axes.append(untracked(n))
        elif step == "unify":
            known.unify(axis, draw(st.sampled_from([other for other in known.axes if len(other) == n])))
        elif step == "fix":
            at = draw(st.integers(0, n - 1))
            known.fix(axis[at : at + 1])
        elif step == "mark":
            known.mark(axis[: draw(st.integers(1, n))], draw(st.integers(1, 3)))
        elif step == "be":
            known.be(axis[: draw(st.integers(1, n))], 1 << draw(st.integers(0, 3)))
        else:
            known.tie_rows(axis)
    return known


_STEPS = ["split", "unify"] * 3 + ["merge", "join", "piece", "repeat", "tile", "permute", "fix", "mark", "be"]
_STEPS += ["fresh", "plain", "tie rows"]


@settings(max_examples=150, deadline=None)
@given(known=programs(), seed=st.integers(0, 2**32 - 1))
def test_whatever_leaves_every_recorded_fact_holds(known, seed):
    """Among them: what a split made is a grid of which whole rows and columns leave, so every reshape can follow."""
    free = known.free()
    chance = random.Random(seed)
    assert known.hold(set())
    for atom in free[:4]:
        assert known.hold({atom})
    for share in (0.1, 0.5, 0.9):
        assert known.hold({atom for atom in free if chance.random() < share})


@settings(max_examples=100, deadline=None)
@given(known=programs(), seed=st.integers(0, 2**32 - 1))
def test_on_grids_something_of_every_axis_stays(known, seed):
    """One atom of each kind and grid stays, any one: no axis loses all its entries, and no fact is broken."""
    axes = [axis for axis in known.axes if len(axis) > 1]
    grids = settle_grids(known.atoms, axes)
    chance = random.Random(seed)
    kinds: dict[tuple, list[int]] = {}
    for atom in known.free():
        where = tuple(sum(atom in row for row in known.atoms.resolve(axis).tolist()) for axis in axes)
        kinds.setdefault((int(grids[atom]), where), []).append(atom)
    alone = {atoms[0] for atoms in kinds.values() if len(atoms) == 1}
    stay = {chance.choice(atoms) for atoms in kinds.values()} | alone
    gone = set(known.free()) - stay
    assert known.hold(gone)
    for axis in axes:
        assert not all(known.gone_of(axis, gone))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_plain_unions_are_a_partition_with_what_was_said_of_its_members(data):
    """Without products the answer is exact: not one atom more is tied, fixed, marked or of a kind."""
    n = data.draw(st.integers(2, 12))
    atoms = Atoms()
    axis = atoms.fresh(n)[:, None]
    sets = [{i} for i in range(n)]
    why, level, kind = [0] * n, [0] * n, [0] * n
    for _ in range(data.draw(st.integers(1, 8))):
        chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
        what = data.draw(st.sampled_from(["tie", "tie", "fix", "mark", "be"]))
        if what == "tie":
            others = data.draw(st.permutations(chosen))
            atoms.unify(axis[chosen], axis[others], "")
            for i, j in zip(chosen, others):
                union = sets[i] | sets[j]
                for member in union:
                    sets[member] = union
        elif what == "fix":
            atoms.fix(axis[chosen], "fixed")
            why = [w or i in chosen for i, w in enumerate(why)]
        elif what == "mark":
            to = data.draw(st.integers(1, 3))
            atoms.mark(axis[chosen], to, f"level {to}")
            level = [max(old, to) if i in chosen else old for i, old in enumerate(level)]
        else:
            bit = 1 << data.draw(st.integers(0, 3))
            atoms.be(axis[chosen], bit)
            kind = [old | bit if i in chosen else old for i, old in enumerate(kind)]
    roots = atoms.resolve(axis)[:, 0]
    for i in range(n):
        assert {j for j in range(n) if roots[j] == roots[i]} == sets[i]
        root = roots[i : i + 1]
        assert bool(atoms.why(root)[0]) == any(why[j] for j in sets[i])
        assert atoms.level(root)[0] == max(level[j] for j in sets[i])
        assert atoms.reasons[atoms.note(root)[0]] == (
            f"level {atoms.level(root)[0]}" if atoms.level(root)[0] else ""
        )
        assert atoms.kind(root)[0] == np.bitwise_or.reduce([kind[j] for j in sets[i]])


# ---- nothing is tied without need: by hand ------------------------------------------------------------------


def units(atoms: Atoms, *axes: Cells) -> int:
    """Return how many units there are."""
    return len(np.unique(np.concatenate([atoms.resolve(axis).ravel() for axis in axes])[:, None])) - any(
        (atoms.resolve(axis) == 0).any() for axis in axes
    )


def test_heads_and_dimensions_are_a_sum_of_units_not_a_product():
    atoms = Atoms()
    features = atoms.fresh(12 * 64)[:, None]
    heads, dims = atoms.split(features, 12, 64)
    assert units(atoms, features) == units(atoms, heads, dims) == 12 + 64


def test_two_factorisations_meet_in_their_common_refinement():
    """12 = 2 x 6 = 6 x 2 is 2 x 3 x 2."""
    atoms = Atoms()
    features = atoms.fresh(12)[:, None]
    for outer in (2, 6):
        atoms.split(features, outer, 12 // outer)
    assert units(atoms, features) == 2 + 3 + 2


def test_projections_of_one_attention_share_heads_and_dimensions():
    atoms = Atoms()
    projections = [atoms.fresh(24)[:, None] for _ in range(3)]
    (q_heads, q_dims), (k_heads, k_dims), (v_heads, v_dims) = (atoms.split(p, 4, 6) for p in projections)
    atoms.unify(q_dims, k_dims, "")  # contracted
    for other in (k_heads, v_heads):
        atoms.unify(q_heads, other, "")
    assert units(atoms, *projections) == 4 + 6 + 6


def test_grouped_queries_repeat_every_head_of_keys():
    """8 query heads, 2 heads of keys: [2, 1, d] expanded to [2, 4, d]. 2 groups, 4 query heads within each, d."""
    atoms = Atoms()
    query, key = atoms.fresh(8 * 6)[:, None], atoms.fresh(2 * 6)[:, None]
    q_heads, q_dims = atoms.split(query, 8, 6)
    k_heads, k_dims = atoms.split(key, 2, 6)
    copies = atoms.fresh(4)[:, None]  # an axis that was expanded: its slices are alike
    atoms.unify(merged(k_heads, copies), q_heads, "")
    atoms.unify(q_dims, k_dims, "")
    assert units(atoms, key) == 2 + 6
    assert units(atoms, query) == 2 + 4 + 6
    assert set(atoms.resolve(key).ravel()) < set(atoms.resolve(query).ravel())
    assert np.array_equal(atoms.resolve(q_heads)[:, 0], np.repeat(atoms.resolve(k_heads)[:, 0], 4))


def test_grouped_queries_without_an_expanded_axis_leave_in_whole_groups():
    """np.repeat of the heads of keys (SDPA's enable_gqa): the four query heads of one leave with it."""
    atoms = Atoms()
    query, key = atoms.fresh(8 * 6)[:, None], atoms.fresh(2 * 6)[:, None]
    q_heads, _ = atoms.split(query, 8, 6)
    k_heads, _ = atoms.split(key, 2, 6)
    atoms.unify(q_heads, np.repeat(k_heads, 4, axis=0), "")
    assert units(atoms, q_heads) == 2
    assert units(atoms, query) == 2 + 6


def test_one_head_of_keys_for_all_stays_whole():
    """Multi-query attention: an axis of one entry has no atom to give, and the query heads leave each by itself."""
    atoms = Atoms()
    query = atoms.fresh(8 * 6)[:, None]
    q_heads, q_dims = atoms.split(query, 8, 6)
    key = atoms.fresh(6)[:, None]
    atoms.unify(atoms.fresh(8)[:, None], q_heads, "")
    atoms.unify(q_dims, key, "")
    assert units(atoms, query) == 8 + 6
    assert units(atoms, key) == 6


def test_what_meets_an_axis_that_stays_is_fixed_with_the_reason_of_the_first():
    atoms = Atoms()
    axis = atoms.fresh(6)[:, None]
    heads, dims = atoms.split(axis, 2, 3)
    atoms.fix(heads, "one entry of it is picked")
    atoms.unify(dims, untracked(3), lambda: "meets an input")
    atoms.fix(axis, "never said")
    whys = atoms.why(atoms.resolve(axis))
    assert [atoms.reasons[w] for w in whys[0]] == ["one entry of it is picked", "meets an input"]
    assert (whys > 0).all()


def test_half_of_an_axis_may_be_fixed():
    """An identity shortcut padded by zeros: what is added to the padding stays, the rest may leave."""
    atoms = Atoms()
    narrow, wide = atoms.fresh(4)[:, None], atoms.fresh(8)[:, None]
    atoms.unify(np.pad(narrow, ((2, 2), (0, 0))), wide, "is padded")
    fixed = atoms.why(atoms.resolve(wide)).ravel() > 0
    assert fixed.tolist() == [True, True, False, False, False, False, True, True]
    assert not atoms.why(atoms.resolve(narrow)).any()


def test_the_worst_level_of_united_atoms_counts_whichever_joins_which():
    atoms = Atoms()
    a, b, c = (atoms.fresh(1)[:, None] for _ in range(3))
    atoms.mark(a, 1, "one")
    atoms.mark(b, 3, "three")
    atoms.mark(c, 2, "two")
    atoms.unify(np.concatenate([a, c]), np.concatenate([b, b]), "")
    for each in (a, b, c):
        root = atoms.resolve(each)[0]
        assert (atoms.level(root)[0], atoms.reasons[atoms.note(root)[0]]) == (3, "three")


@pytest.mark.parametrize(
    "meet",
    [
        lambda atoms, features, heads: (np.tile(heads, (3, 1)), features),
        lambda atoms, features, heads: (features, np.tile(heads, (3, 1))),
    ],
)
def test_an_axis_that_meets_its_own_heads_out_of_order_settles(meet):
    """Heads repeated as 0 1 2 3 0 1 2 3 .. on features 0 0 0 1 1 1 ..: coarse, but it ends (it once did not)."""
    atoms = Atoms()
    features = atoms.fresh(12)[:, None]
    heads, _ = atoms.split(features, 4, 3)
    atoms.unify(*meet(atoms, features, heads), "")
    assert units(atoms, features) == 1


def test_the_same_axis_twice_in_pairs_settles():
    atoms = Atoms()
    axis = atoms.fresh(6)[:, None]
    outer, _ = atoms.split(joined([axis, axis]), 6, 2)
    atoms.unify(outer, axis, "")
    assert units(atoms, axis) == 1


def test_two_grids_on_one_axis_are_not_alike():
    """Two attentions side by side, of as many heads and dimensions: a head of the one and the dimensions of the other share
    nothing, so each keeps a head and a dimension of its own."""
    atoms = Atoms()
    fused = atoms.fresh(2 * 12)[:, None]
    one, other = (atoms.split(part, 4, 3) for part in (fused[:12], fused[12:]))
    grids = settle_grids(atoms, [fused])
    assert [len(np.unique(grids[np.concatenate(part).ravel()])) for part in (one, other)] == [1, 1]
    assert grids[one[0][0, 0]] != grids[other[0][0, 0]]
    assert units(atoms, fused) == 2 * (4 + 3)


def test_heads_beside_plain_features_keep_their_grid():
    """A parallel block: attention and perceptron concatenated before one projection."""
    atoms = Atoms()
    attended, hidden = atoms.fresh(12)[:, None], atoms.fresh(10)[:, None]
    heads, dims = atoms.split(attended, 4, 3)
    both = joined([merged(heads, dims), hidden])
    settle_grids(atoms, [attended, hidden, both])
    assert units(atoms, both) == 4 + 3 + 10


def test_units_that_would_take_an_axis_with_them_stay():
    """Seen as 3 x 4 and as 4 x 3, twelve features have no common grid: each of four atoms would be all of them."""
    atoms = Atoms()
    features = atoms.fresh(12)[:, None]
    for outer in (3, 4):
        atoms.split(features, outer, 12 // outer)
    settle_grids(atoms, [features])
    whys = atoms.why(atoms.resolve(features))
    assert {atoms.reasons[why] for why in whys.ravel()} == {"all its entries leave together, so none can"}


def test_millions_of_atoms():
    """A Llama of 32 layers: 3.2 million atoms, each layer's heads grouped, its inner units and the stream tied."""
    atoms = Atoms()
    width, inner, heads, groups, dim = 4096, 14336, 32, 8, 128
    stream = atoms.fresh(width)[:, None]
    layers = []
    for _ in range(32):
        q, out = atoms.fresh(heads * dim)[:, None], atoms.fresh(heads * dim)[:, None]
        k, v = atoms.fresh(groups * dim)[:, None], atoms.fresh(groups * dim)[:, None]
        reads = [atoms.fresh(width)[:, None] for _ in range(6)]
        gate, up, down = (atoms.fresh(inner)[:, None] for _ in range(3))
        for read in reads:
            atoms.unify(read, stream, "")
        (of_q, q_dims), (of_k, k_dims), (of_v, v_dims) = (
            atoms.split(q, heads, dim),
            *(atoms.split(x, groups, dim) for x in (k, v)),
        )
        copies = atoms.fresh(heads // groups)[:, None]
        for each in (of_k, of_v):
            atoms.unify(merged(each, copies), of_q, "")
        atoms.unify(q_dims, k_dims, "")
        atoms.unify(out, merged(of_q, v_dims), "")
        atoms.unify(gate, up, "")
        atoms.unify(up, down, "")
        layers.append((q, k, out, up))
    assert atoms.fresh(1)[0] > 2_000_000 + 200_000
    rest = atoms.fresh(1_000_000)[:, None]
    atoms.unify(rest[:-1], rest[1:], "")  # a chain, the worst for a union-find
    assert units(atoms, rest) == 1
    for q, k, _, up in layers[::31]:
        assert units(atoms, q) == groups + heads // groups + dim
        assert units(atoms, k) == groups + dim
        assert units(atoms, up) == inner
    assert units(atoms, stream) == width
