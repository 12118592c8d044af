"""Sentence pairs from tab-separated files and from lists of package descriptions, and splits that share nothing."""

import bz2
import gzip
import lzma
import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewound.tasks import pairs as pairs_module
from rewound.tasks.debian import read_debian
from rewound.tasks.pairs import read_pairs, sentence_key, some_of, split_pairs, without

ENGLISH = """\
Package: bat-and-ball
Description-md5: 11111111111111111111111111111111
Description-en: game with a bat
 Hit the ball with your bat. The wall sends
 it back.
 .
 There are:
  * two players, of whom
    one may rest
  * many walls
 .
 This paragraph has one sentence, whatever it says.

Package: bat-and-ball-extra
Description-md5: 22222222222222222222222222222222
Description-en: game with a bat (extra walls)
 Hit the ball with your bat. The wall sends it back.

Package: lonely
Description-md5: 33333333333333333333333333333333
Description-en: tool that nobody has translated

Package: moved-on
Description-md5: 44444444444444444444444444444444
Description-en: a text that changed since it was translated

Package: terse
Description-md5: 55555555555555555555555555555555
Description-en: Frobnicator
 Prints words. Prints them again.
 .
 That is all.
"""
GERMAN = """\
Package: bat-and-ball
Description-md5: 11111111111111111111111111111111
Description-de: Spiel mit Schläger
 Schlagen Sie den Ball mit dem Schläger. Die Wand wirft ihn zurück.
 .
 Es gibt:
   - zwei Mitspieler, von denen einer
     ruhen darf
   - viele Wände
 .
 Dieser Absatz hat einen Satz mehr. Das macht
 ihn zu einem Paar im Ganzen.

Package: bat-and-ball-extra
Description-md5: 22222222222222222222222222222222
Description-de: Spiel mit Schläger (weitere Wände)
 Schlagen Sie den Ball mit dem Schläger. Die Wand wirft ihn zurück.

Package: moved-on
Description-md5: 99999999999999999999999999999999
Description-de: ein Text, der älter ist

Package: terse
Description-md5: 55555555555555555555555555555555
Description-de: Frobnicator
 Hier fehlt der zweite Absatz.
"""
FOUND = [
    ("game with a bat", "Spiel mit Schläger"),
    ("Hit the ball with your bat.", "Schlagen Sie den Ball mit dem Schläger."),
    ("The wall sends it back.", "Die Wand wirft ihn zurück."),
    ("There are:", "Es gibt:"),
    ("two players, of whom one may rest", "zwei Mitspieler, von denen einer ruhen darf"),
    ("many walls", "viele Wände"),
    (
        "This paragraph has one sentence, whatever it says.",
        "Dieser Absatz hat einen Satz mehr. Das macht ihn zu einem Paar im Ganzen.",
    ),
    ("game with a bat (extra walls)", "Spiel mit Schläger (weitere Wände)"),
]
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write_lists(folder, end="", pack=bytes):
    folder.mkdir(parents=True, exist_ok=True)
    for language, text in (("en", ENGLISH), ("de", GERMAN)):
        name = f"mirror_dists_stable_main_i18n_Translation-{language}{end}"
        (folder / name).write_bytes(pack(text.encode()))
    return folder


@pytest.mark.parametrize("end", PACKED)
def test_descriptions_become_pairs(tmp_path, end):
    assert read_debian(write_lists(tmp_path, end, PACKED[end])) == FOUND


def test_either_language_may_be_the_source(tmp_path):
    assert read_debian(write_lists(tmp_path), "de", "en") == [(b, a) for a, b in FOUND]


def test_several_lists_of_a_language_are_read_together(tmp_path):
    first, *rest = (f"{entry}\n" for entry in ENGLISH.split("\n\n"))
    write_lists(tmp_path)
    (tmp_path / "mirror_dists_stable_main_i18n_Translation-en").write_text("\n".join(rest), encoding="utf-8")
    (tmp_path / "Translation-en").write_text(first, encoding="utf-8")
    assert set(read_debian(tmp_path)) == set(FOUND)


@pytest.mark.parametrize("helper", [pairs_module._APT_HELPER, "there-is-no-such-helper"])
def test_lists_that_apt_packed_by_lz4(tmp_path, monkeypatch, helper):
    if shutil.which("lz4") is None:
        pytest.skip("needs the program lz4")
    monkeypatch.setattr(pairs_module, "_APT_HELPER", helper)

    def pack(content):
        return subprocess.run(["lz4", "-c"], input=content, capture_output=True, check=True).stdout

    assert read_debian(write_lists(tmp_path, ".lz4", pack)) == FOUND
    for file in tmp_path.iterdir():
        file.write_bytes(b"no lz4")
    with pytest.raises(ValueError, match=r"Translation-en\.lz4 is damaged: "):
        read_debian(tmp_path)


def test_a_packer_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(
        ValueError, match=r"Translation-en\.lz4 is packed by lz4, which is not there: install it"
    ):
        read_debian(write_lists(tmp_path, ".lz4"))


def test_a_missing_list_says_how_to_get_it(tmp_path):
    write_lists(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list \*Translation-fr in .*: get apt's lists .* update"):
        read_debian(tmp_path, "en", "fr")
    with pytest.raises(FileNotFoundError, match=r"no list \*Translation-en in .*nowhere"):
        read_debian(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("some text\n", "Translation-de, line 1: not 'Field: value'"),
        (" begins indented\n", "line 1: not 'Field: value'"),
        (ENGLISH, r"the entry that ends in line 13 has no Description-de: this is no list .* in 'de'"),
        ("Package: a\nDescription-de: b\n", "ends in line 3 has no Description-md5"),
        ("", r"the lists en and de in .* have no description in common: fetch them anew"),
        (b"\xff\xfe", "Translation-de is damaged, or no text in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_named(tmp_path, text, says):
    write_lists(tmp_path)
    file = tmp_path / "mirror_dists_stable_main_i18n_Translation-de"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says):
        read_debian(tmp_path)


@pytest.mark.parametrize("end", PACKED)
def test_pairs_of_ones_own(tmp_path, end):
    text = "\ufeffone  ball\teinen\u00a0Ball\r\n\n two\tzwei \none ball\teinen Ball\nu\u0308ber\tover\n"
    file = tmp_path / f"pairs.tsv{end}"
    file.write_bytes(PACKED[end](text.encode()))
    assert read_pairs(file) == [("one ball", "einen Ball"), ("two", "zwei"), ("\u00fcber", "over")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\tb\nc d\n", r"pairs.tsv, line 2: must be source TAB target, neither empty \(got 'c d'\)"),
        (b"a\tb\tc\n", "line 1: must be source TAB target"),
        (b"a\t\n", "line 1: must be source TAB target"),
        (b"\n\n", "pairs.tsv holds no pair"),
        (b"\xe4\t\xf6\n", "pairs.tsv is damaged, or no text in UTF-8"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, content, says):
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_pairs(tmp_path / "pairs.tsv")


def test_a_cut_off_archive_is_named(tmp_path):
    (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 100)[:-12])
    with pytest.raises(ValueError, match=r"pairs\.tsv\.gz is damaged"):
        read_pairs(tmp_path / "pairs.tsv.gz")


def keys(part):
    return {sentence_key(text) for pair in part for text in pair}


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_no_sentence_is_in_two_splits(seed, validation, test):
    draw = random.Random(seed)
    letters = [f"{c}{d}" for c in "abcdefgh" for d in "pqrs"]
    pairs = [(draw.choice(letters), draw.choice(letters).upper() + draw.choice(["", "."])) for _ in range(24)]
    pairs += [(f"alone {i}", f"allein {i}") for i in range(8)]  # so that any number up to 4 and 4 can be met
    split = split_pairs(pairs, validation, test)
    assert (len(split.validation), len(split.test)) == (validation, test)
    assert sorted(split.train + split.validation + split.test) == sorted(set(pairs))
    parts = [keys(part) for part in (split.train, split.validation, split.test)]
    assert all(a.isdisjoint(b) for a, b in ((parts[0], parts[1]), (parts[0], parts[2]), (parts[1], parts[2])))
    draw.shuffle(pairs)
    again = split_pairs(pairs, validation, test)
    assert [set(a) == set(b) for a, b in zip(vars(split).values(), vars(again).values())] == [True] * 3


def test_pairs_that_share_a_sentence_by_way_of_others_stay_together():
    chain = [(f"s{i // 2}", f"t{(i + 1) // 2}") for i in range(40)]
    split = split_pairs([*chain, ("alone", "allein"), ("only", "nur")], validation=1, test=1)
    assert set(split.train) == set(chain)


@pytest.mark.parametrize(
    ("pairs", "validation", "says"),
    [
        (
            [("a", "b"), ("c", "d")],
            1,
            "cannot hold out 1 pairs to validate and 1 to test, at least 1 each, of 2",
        ),
        ([("a", "b"), ("c", "d"), ("e", "f")], 0, "at least 1 each"),
        ([("a", str(i)) for i in range(5)] + [("b", "c")], 1, "so many share their sentences"),
        ([("a", "1"), ("a", "2"), ("b", "3")], 1, "so many share their sentences"),
    ],
)
def test_splits_that_cannot_be_are_refused(pairs, validation, says):
    with pytest.raises(ValueError, match=says):
        split_pairs(pairs, validation, 1)


def test_pairs_held_out_elsewhere_are_not_trained_on():
    pairs = [("A game!", "x"), ("b", "Ein Spiel"), ("c", "z")]
    assert without(pairs, [("a game", "ein spiel")]) == (("c", "z"),)


def test_a_subset_follows_from_the_texts():
    pairs = tuple((f"s{i}", f"t{i}") for i in range(50))
    some = some_of(pairs, 10)
    assert len(some) == 10
    assert some != pairs[:10]
    assert set(some_of(pairs[::-1], 10)) == set(some)
    assert some_of(pairs, 50) == pairs
    with pytest.raises(
        ValueError, match=r"'subset' must be in 1\.\.50, the training pairs there are \(got 51\)"
    ):
        some_of(pairs, 51)
