"""Codes of weights: exact there and back, of the size that the formula says, the same natively and in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rewound.runtime import _native
from rewound.runtime.codec import bits, codebook, eie, huffman, places, relative, sizes, values, weight
from rewound.runtime.weights import Sparse, dense, sparse

DENSITIES = (0.0, 0.002, 0.02, 0.1, 0.5, 0.98, 1.0)


def random_matrix(rows, row, density, seed=0):
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, row)).astype(np.float32)
    matrix[generator.random((rows, row)) >= density] = 0
    return matrix


def same(a: Sparse, b: Sparse) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(getattr(a, field), getattr(b, field)) for field in ("starts", "places", "values")
    )


# -- bits -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.data())
def test_packed_numbers_come_back(width, data):
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=50)), np.uint16)
    packed = bits.pack(numbers, width)
    assert len(packed) == math.ceil(len(numbers) * width / 8)
    assert np.array_equal(bits.unpack(packed, width)[: len(numbers)], numbers)
    assert bits.filling(packed, len(numbers) * width)


def test_long_sequences_are_packed_in_parts(monkeypatch):
    monkeypatch.setattr(bits, "_AT_ONCE", 16)
    numbers = np.arange(1000) % 32
    assert np.array_equal(bits.unpack(bits.pack(numbers, 5), 5)[:1000], numbers)


# -- places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("rows", "row"), [(1, 1), (7, 13), (64, 64), (3, 1000), (100, 1)])
def test_places_come_back_natively_and_in_numpy(rows, row, density):
    kept = sparse(random_matrix(rows, row, density))
    flat = np.repeat(np.arange(rows) * row, np.diff(kept.starts)) + kept.places
    gaps = np.diff(flat, prepend=-1) - 1
    codes = [("bitmap", places.encode_bitmap(flat, rows * row))]
    codes += [(f"deltas:{width}", places.encode_deltas(gaps, width)) for width in range(1, 17)]
    best, coded = places.encode(kept.starts, kept.places, row)
    if len(gaps):
        assert len(coded) == min(len(data) for _, data in codes)
    for name, data in [*codes, (best, coded)]:
        kind, width = places.parse(name)
        if kind == "deltas":
            assert len(data) == places.deltas_size(gaps, width)
        for starts, found in (
            places.decode(name, data, rows, row, len(gaps)),
            places.decode_bitmap(data, rows, row, len(gaps))
            if kind == "bitmap"
            else places.decode_deltas(data, width, rows, row, len(gaps)),
        ):
            assert starts.dtype == np.int64 and found.dtype == np.int32
            assert np.array_equal(starts, kept.starts) and np.array_equal(found, kept.places)


def test_at_nine_tenths_the_gaps_are_near_the_entropy():
    kept = sparse(random_matrix(256, 2304, 0.1))
    name, coded = places.encode(kept.starts, kept.places, kept.row)
    entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) * kept.size / 8
    assert name == "deltas:4" and len(coded) < 1.08 * entropy


def refusal(decode, *arguments):
    try:
        return decode(*arguments), None
    except ValueError as error:
        return None, str(error)


@settings(max_examples=300)
@given(
    arrays.arrays(np.uint8, st.integers(0, 12)),
    st.integers(1, 16),
    st.integers(0, 5),
    st.integers(0, 9),
    st.integers(0, 12),
)
def test_any_bytes_are_read_or_refused_alike(data, width, rows, row, count):
    count = min(count, rows * row)
    book = np.array([1.5, -2.0, 3.25], np.float32)
    for native, plain, arguments in (
        (_native.decode_bitmap, places.decode_bitmap, (data, rows, row, count)),
        (_native.decode_deltas, places.decode_deltas, (data, width, rows, row, count)),
    ):
        (here, told), (there, said) = refusal(native, *arguments), refusal(plain, *arguments)
        assert told == said
        if told is None:
            assert all(np.array_equal(a, b) for a, b in zip(here, there))
    arguments = ("codes:" + str(width), data, count, book)
    here = refusal(values.decode, *arguments)
    if here[1] is None:
        assert np.array_equal(here[0], values.decode_codes(data, width, book, count))
    elif len(data) == bits.packed_size(count, width):
        assert here[1] == refusal(values.decode_codes, data, width, book, count)[1]


def test_the_native_decoders_refuse_counts_that_cannot_be():
    none = np.zeros(0, np.uint8)
    for rows, row, count in ((-1, 1, 0), (1, -1, 0), (1, 2**31, 0), (2, 2, 5), (2**61, 8, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="do not go together"):
            _native.decode_bitmap(none, rows, row, count)
    with pytest.raises(ValueError, match="1 to 16"):
        _native.decode_deltas(none, 17, 1, 1, 0)
    with pytest.raises(ValueError, match="too early"):
        _native.decode_codes(none, 4, np.ones(1, np.float32), 10**18)


def test_unknown_codes_are_named():
    for name in ("deltas", "deltas:0", "deltas:17", "runs", "deltas:x"):
        with pytest.raises(ValueError, match=r"'deltas:1' to 'deltas:16' \(got"):
            places.decode(name, np.zeros(0, np.uint8), 1, 1, 0)
    for name in ("float8", "codes:0", "codes:99"):
        with pytest.raises(ValueError, match="values are coded as"):
            values.decode(name, np.zeros(0, np.uint8), 0)


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["float32", "bfloat16", "float16", "codebook:16", "codebook:300", "codebook:2"]
)
def test_values_come_back_as_they_were_rounded(spelling):
    numbers = random_matrix(1, 5000, 1.0)[0]
    rounded = values.round_to(numbers, spelling)
    coded = values.encode(rounded, spelling)
    assert np.array_equal(values.decode(coded.codec, coded.data, 5000, coded.codebook), rounded)
    assert np.array_equal(values.round_to(rounded, spelling), rounded)
    if spelling.startswith("codebook"):
        levels = int(spelling.partition(":")[2])
        assert len(np.unique(rounded)) <= levels
        used = len(np.unique(rounded))
        assert used > 0.8 * levels and len(coded.data) == math.ceil(5000 * (used - 1).bit_length() / 8)


@given(arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
def test_float32_is_kept_to_the_bit(numbers):
    coded = values.encode(values.round_to(numbers, "float32"), "float32")
    back = values.decode(coded.codec, coded.data, len(numbers), coded.codebook)
    assert back.tobytes() == numbers.tobytes()


def test_bfloat16_rounds_as_torch_does():
    import torch

    numbers = np.concatenate(
        [random_matrix(1, 4000, 1.0)[0], np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3e38, 1e-40])]
    )
    expected = torch.from_numpy(numbers).bfloat16().float().numpy()
    assert np.array_equal(values.round_to(numbers, "bfloat16"), expected, equal_nan=True)


@pytest.mark.parametrize("spelling", ["float32", "bfloat16", "float16"])
def test_signalling_nans_are_numbers_like_others(spelling):
    """Comparing one warns, and warnings are errors here; a file may hold any bits."""
    numbers = np.uint32([0x7F800001, 0x3F800000, 0xFFBFFFFF]).view(np.float32)
    for whole in (
        np.tile(numbers, (2, 1)),
        Sparse((2, 3), np.array([0, 3, 3]), np.int32([0, 1, 2]), numbers),
    ):
        stored = weight.encode(whole, spelling)
        back = weight.decode(stored)
        assert stored.away == 0 and np.isnan(dense(back)[0]).tolist() == [True, False, True]


def test_few_values_are_stored_by_index_without_loss():
    numbers = np.float32([0.5, -1.5, np.nan, 7.0])[np.arange(4096) % 4]
    coded = values.encode(numbers, "float32")
    assert coded.codec == "codes:2" and len(coded.data) == 1024
    assert values.decode(coded.codec, coded.data, 4096, coded.codebook).tobytes() == numbers.tobytes()


def test_what_a_code_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="float16 ends at 65,504, and a weight is 70000"):
        values.round_to(np.float32([1, 7e4]), "float16")
    with pytest.raises(ValueError, match="finite"):
        values.round_to(np.float32([1, 2, np.nan]), "codebook:2")
    for spelling in ("codebook:1", "codebook", "float8", "codebook:999999"):
        with pytest.raises(ValueError, match="'values' must be"):
            values.round_to(np.float32([1]), spelling)


# -- codebooks ------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(0, 5))
def test_kmeans_is_a_fixed_point_of_lloyd(levels, seed):
    numbers = random_matrix(1, 200, 1.0, seed)[0]
    book = codebook.kmeans(numbers, levels)
    nearest = np.abs(numbers[:, None] - book[None, :].astype(np.float64)).argmin(axis=1)
    assert np.array_equal(codebook.nearest(numbers, book), nearest)
    assert len(book) <= levels and (np.diff(book) > 0).all()
    means = [numbers[nearest == level].mean(dtype=np.float64) for level in range(len(book))]
    assert np.allclose(book, means, rtol=0, atol=1e-6)


def test_kmeans_agrees_with_scikit_learn():
    from sklearn.cluster import KMeans

    numbers = np.tanh(
        random_matrix(1, 3000, 1.0)[0]
    )  # no cluster is ever empty: they move those, we leave them out
    linear = np.linspace(numbers.min(), numbers.max(), 16)[:, None]
    theirs = KMeans(16, init=linear, n_init=1, tol=0, max_iter=1000).fit(numbers[:, None])
    ours = codebook.kmeans(numbers, 16)
    assert np.allclose(np.sort(theirs.cluster_centers_[:, 0]), ours, atol=1e-4)


# -- whole weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["float32", "bfloat16", "float16", "codebook:16"])
@pytest.mark.parametrize("density", DENSITIES)
def test_sparse_weights_come_back(density, spelling):
    kept = sparse(random_matrix(40, 90, density).reshape(40, 10, 3, 3))
    back = weight.decode(weight.encode(kept, spelling))
    if spelling == "float32":
        assert same(back, kept)
    assert np.array_equal(dense(back)[dense(kept) != 0], values.round_to(kept.values, spelling))
    assert (back.values != 0).all() and back.density == kept.density


@pytest.mark.parametrize("density", DENSITIES)
def test_arrays_come_back_with_their_zeros_small(density):
    matrix = random_matrix(50, 64, density)
    matrix[0, :3] = -0.0, np.nan, np.inf
    stored = weight.encode(matrix)
    assert weight.decode(stored).tobytes() == matrix.tobytes()
    taken = sum(len(part.data) for part in stored.parts.values())
    assert taken <= min(matrix.nbytes, 4 * stored.count + matrix.size // 8)


@pytest.mark.parametrize("kind", ["float64", "int64", "int32", "uint8", "bool"])
def test_other_types_are_stored_as_they_are(kind):
    array = (np.arange(12).reshape(3, 4) % 3).astype(kind)
    back = weight.decode(weight.encode(array))
    assert back.dtype == array.dtype and np.array_equal(back, array)


def test_what_rounds_to_zero_leaves_the_places_too():
    kept = sparse(np.float32([[1, 1e-9, 0, 2], [0, -1e-12, 1e-10, 0], [3, 0, 0, 1e-8]]))
    stored = weight.encode(kept, "float16")
    back = weight.decode(stored)
    assert stored.away == 4 and stored.count == 3
    assert back.starts.tolist() == [0, 2, 2, 3] and back.places.tolist() == [0, 3, 0]
    assert back.density == 3 / 12


@pytest.mark.parametrize(
    "broken",
    [
        Sparse((2, 3), np.array([0, 1, 2]), np.int32([0, 3]), np.float32([1, 1])),
        Sparse((2, 3), np.array([0, 2, 1]), np.int32([0]), np.float32([1])),
        Sparse((2, 3), np.array([0, 2, 2]), np.int32([1, 1]), np.float32([1, 1])),
        Sparse((2, 3), np.array([0, 1, 1]), np.int32([1]), np.float32([0])),
        Sparse((2, 3), np.array([0, 1]), np.int32([1]), np.float32([1])),
    ],
)
def test_a_sparse_that_is_not_sound_is_not_written(broken):
    with pytest.raises(ValueError, match="not sound"):
        weight.encode(broken)


# -- EIE ------------------------------------------------------------------------------------------------------


def runs_of(*runs, rows=80):
    """One column with these runs of zeros, each before a survivor."""
    column = np.zeros((rows, 1), np.float32)
    column[np.cumsum(np.array(runs, int) + 1) - 1] = 0.5
    return column


@pytest.mark.parametrize(
    ("column", "pads"),
    [
        (runs_of(15), 0),
        (runs_of(16), 1),
        (runs_of(31), 1),
        (runs_of(32), 2),
        (runs_of(15, 16, 31), 2),
        (runs_of(), 0),
    ],
)
def test_long_runs_have_padding_zeros(column, pads):
    coded = eie.encode(column)
    assert coded.pads == pads and coded.entries == np.count_nonzero(column) + pads
    assert np.array_equal(eie.decode(coded), column)


@settings(max_examples=60)
@given(
    st.integers(0, 70),
    st.integers(0, 7),
    st.sampled_from(DENSITIES),
    st.sampled_from([1, 3, 64]),
    st.integers(0, 9),
)
def test_eie_is_exact_and_as_large_as_its_formula(rows, columns, density, elements, seed):
    matrix = eie.share(random_matrix(rows, columns, density, seed))
    if columns > 1:
        matrix[:, 1] = 0  # an empty column
    coded = eie.encode(matrix, elements)
    assert np.array_equal(eie.decode(coded), matrix)
    padding = 0
    for first in range(elements):
        for column in matrix[first::elements].T:
            before = -1
            for row in np.flatnonzero(column):
                padding += (row - before - 1) // 16
                before = row
    assert coded.pads == padding
    assert coded.bits == 8 * (np.count_nonzero(matrix) + padding) + 16 * elements * (columns + 1) + 256
    assert coded.codebook[0] == 0


def test_eie_multiplies_by_what_is_there_alone():
    matrix, x = eie.share(random_matrix(128, 40, 0.1)), random_matrix(1, 40, 0.4)[0]
    y, work = eie.multiply(eie.encode(matrix, 4), x)
    assert np.allclose(y, matrix.astype(np.float64) @ x, atol=1e-6)
    assert work.dense == 128 * 40 and work.weights == np.count_nonzero(matrix)
    assert work.useful == np.count_nonzero(matrix[:, x != 0])
    assert work.useful <= work.entries <= work.dense
    assert work.entries / 4 <= work.cycles <= work.lockstep <= work.entries


def test_eie_asks_for_shared_values():
    with pytest.raises(ValueError, match="indexes 15 values besides zero, and the matrix has 99"):
        eie.encode(np.arange(100, dtype=np.float32).reshape(10, 10))
    with pytest.raises(ValueError, match="NaN"):
        eie.encode(np.full((1, 1), np.nan, np.float32))


def test_padding_is_by_run():
    assert relative.padding(np.array([0, 7, 8, 16]), 3).tolist() == [0, 0, 1, 2]


# -- Huffman --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 19), max_size=200))
def test_huffman_is_exact_and_within_a_bit_of_the_entropy(symbols):
    symbols = np.array(symbols, np.int64)
    coded = huffman.encode(symbols, 20)
    assert np.array_equal(huffman.decode(coded), symbols)
    total = huffman.size_bits(symbols)
    assert len(coded.data) == math.ceil(total / 8)
    counts = np.bincount(symbols)[np.unique(symbols)] if len(symbols) else np.zeros(0)
    entropy = float(-(counts * np.log2(counts / max(1, len(symbols)))).sum())
    if len(counts) > 1:
        assert entropy - 1e-6 <= total < entropy + len(symbols)
        used = coded.lengths[coded.lengths > 0].astype(float)
        assert (2.0**-used).sum() == 1
    else:
        assert total == len(symbols)


def test_huffman_of_skewed_counts_is_long_and_exact():
    fibonacci = [1, 1]
    while len(fibonacci) < 20:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(20), fibonacci))
    coded = huffman.encode(symbols, 20)
    assert coded.lengths.max() == 19
    assert np.array_equal(huffman.decode(coded), symbols)


def test_damaged_huffman_data_are_refused():
    coded = huffman.encode(np.arange(8).repeat(4), 8)
    with pytest.raises(ValueError, match="too early"):
        huffman.decode(huffman.Encoded(coded.lengths, coded.data[:-1], coded.count))
    for lengths in ([1, 1, 1], [0, 0], [60, 1]):
        with pytest.raises(ValueError, match="not those of a Huffman code"):
            huffman.decode(huffman.Encoded(np.uint8(lengths), coded.data, 3))


# -- sizes ----------------------------------------------------------------------------------------------------


def test_sizes_side_by_side():
    matrix = random_matrix(256, 1152, 0.1)
    found = sizes.sizes({"conv": matrix.reshape(256, 128, 3, 3), "bias": np.ones(256, np.float32)})
    layer = found.layers[0].bytes
    assert found.rest == 1024 and layer["dense"] == 4 * matrix.size
    assert layer["ideal"] < layer["deltas"] < layer["bit map"] < layer["gzip"] < layer["dense"]
    assert layer["ideal EIE"] < layer["EIE+Huffman"] < layer["EIE"] < layer["ideal"]
    assert layer["deltas"] < 1.01 * layer["ideal"]
    assert found.ratio("EIE+Huffman") > 30
    assert "dense / this" in str(found) and "conv" in str(found)


def test_sizes_of_a_module_and_of_nothing_kept():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 3))
    torch.nn.init.zeros_(model[1].weight)
    found = sizes.sizes(model)
    assert [layer.name for layer in found.layers] == ["0.weight", "1.weight"]
    assert found.rest == 4 * 23 and found.layers[1].bytes["ideal"] == 0
    with pytest.raises(TypeError, match="needs a Graph, a torch module"):
        sizes.sizes(3)
