"""Readers: on small files of the same format; damaged and hostile ones are errors that name the file."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest

from rewound.tasks.readers import read_cifar_binary, read_cifar_python, read_idx

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
LABELS = [3, 0, 9, 3]


def idx(array, code=8):
    array = np.asarray(array)
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress])
@pytest.mark.parametrize(
    ("code", "kind"), [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")]
)
def test_idx_round_trip(tmp_path, pack, code, kind):
    array = RNG.integers(0, 100, (2, 3, 4)).astype(kind)
    (tmp_path / "file").write_bytes(pack(idx(array, code)))
    read = read_idx(tmp_path / "file")
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    assert read.flags.writeable  # torch.from_numpy would warn


WHOLE = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not an idx file: it begins with nothing"),
        (b"\x89PNG....", "is not an idx file: it begins with 89 50 4e 47"),
        (b"\0\0\x07\1" + WHOLE[4:], "is not an idx file"),
        (WHOLE[:7], "is truncated: it ends within its header"),
        (WHOLE[:-1], "5 bytes of data where its header"),
        (WHOLE + b"!", "7 bytes of data where its header"),
        (idx(np.zeros(0))[:4] + b"\xff" * 4, "where its header"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "is damaged or truncated"),
        (gzip.compress(WHOLE, mtime=0)[:5], "is damaged or truncated"),
        (gzip.compress(WHOLE, mtime=0)[:-8] + b"\0" * 8, "is damaged or truncated"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, content, says):
    (tmp_path / "some-file").write_bytes(content)
    with pytest.raises(ValueError, match="some-file") as error:
        read_idx(tmp_path / "some-file")
    assert says in str(error.value)


def test_cifar_binary(tmp_path):
    content = b"".join(bytes([label]) + row.tobytes() for label, row in zip(LABELS, PIXELS))
    (tmp_path / "batch.bin").write_bytes(content)
    images, labels = read_cifar_binary(tmp_path / "batch.bin")
    assert np.array_equal(images.reshape(4, -1), PIXELS)
    assert images[1, 2, 0, 5] == PIXELS[1, 2048 + 5]  # the blue plane comes third, rows first
    assert labels.tolist() == LABELS
    for damaged in (content[:-1], b"", bytes([10]) + content[1:]):
        (tmp_path / "batch.bin").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"batch\.bin"):
            read_cifar_binary(tmp_path / "batch.bin")


def cifar_pickle(protocol):
    return pickle.dumps({b"data": PIXELS, b"labels": LABELS, b"batch_label": b"one of 1"}, protocol)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_cifar_python(tmp_path, protocol):
    (tmp_path / "data_batch_1").write_bytes(cifar_pickle(protocol))
    images, labels = read_cifar_python(tmp_path / "data_batch_1")
    assert np.array_equal(images.reshape(4, -1), PIXELS)
    assert labels.tolist() == LABELS


def test_cifar_python_as_python_2_wrote_it(tmp_path):
    """The real files: protocol 2, 8-bit strings, numpy's old module name."""
    raw = PIXELS.tobytes()
    opcode = pickle.PROTO + b"\2" + b"}(" + b"U\4data"
    opcode += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\1btR"
    opcode += b"(K\1K\4M\0\x0c\x86cnumpy\ndtype\nU\2u1K\0K\1\x87R"
    opcode += b"(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
    opcode += b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    opcode += b"U\6labels](" + b"".join(b"K" + bytes([label]) for label in LABELS) + b"eu."
    (tmp_path / "data_batch_1").write_bytes(opcode)
    images, labels = read_cifar_python(tmp_path / "data_batch_1")
    assert np.array_equal(images.reshape(4, -1), PIXELS)
    assert labels.tolist() == LABELS


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        cifar_pickle(4)[:-100],
        cifar_pickle(4)[:20],
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": PIXELS}),
        pickle.dumps({b"data": PIXELS[:, :5], b"labels": LABELS}),
        pickle.dumps({b"data": PIXELS, b"labels": [1, 2]}),
        pickle.dumps({b"data": PIXELS, b"labels": [1, 2, 3, 10]}),
        pickle.dumps({b"data": PIXELS.astype(float), b"labels": LABELS}),
    ],
)
def test_damaged_cifar_batches_are_named(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1"):
        read_cifar_python(tmp_path / "data_batch_1")


@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.load, np.save])
def test_a_pickle_cannot_run_anything(tmp_path, function):
    target = tmp_path / "made"
    content = pickle.dumps({b"data": Hostile(function, str(target)), b"labels": LABELS}, 2)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_1 is not a batch.*which is refused"):
        read_cifar_python(tmp_path / "data_batch_1")
    assert not target.exists()


def test_no_other_codec_is_reachable(tmp_path):
    import _codecs

    content = pickle.dumps({b"data": Hostile(_codecs.encode, "text", "rot13"), b"labels": LABELS}, 2)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="encoding 'rot13', which is refused"):
        read_cifar_python(tmp_path / "data_batch_1")
