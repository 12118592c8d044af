"""Translation by a GNMT of any size, as in Renda et al. 2020: sentence pairs of one's own, or Debian's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rewound.tasks.debian import HOW, read_debian
from rewound.tasks.files import find_folder
from rewound.tasks.pairs import Pairs, read_pairs, some_of, split_pairs, without
from rewound.tasks.translation_task import TranslationTask

APT_LISTS = "/var/lib/apt/lists"


def translation(
    layers: int = 2,
    units: int = 128,
    *,
    dropout: float = 0.2,
    tied: bool = False,
    vocabulary: int = 4000,
    max_length: int = 50,
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 0.002,
    warmup: int = 200,
    clip_norm: float = 5.0,
    label_smoothing: float = 0.1,
    beam: int = 5,
    validation: int = 1000,
    test: int = 1000,
    subset: int | None = None,
    source: str = "en",
    target: str = "de",
    data_order: str = "rewind",
    folder: str | Path | None = None,
) -> TranslationTask:
    """Return translation by a GNMT with ``layers`` layers of ``units``, on sentence pairs of one's own or Debian's.

    Read from the first folder that has either: ``pairs.tsv`` (a line is source TAB target; plain or .gz), or apt's lists
    of package descriptions in the languages ``source`` and ``target`` (looked for in /var/lib/apt/lists too). The
    defaults suit Debian's 43,000 pairs and one core. GNMT in Renda et al. 2020 (WMT16) is layers = 4, units = 1024,
    vocabulary = 32000, batch_size = 2048, epochs = 5; the rest is as here.

    Parameters
    ----------
    tied
        The softmax has the weights of the target embedding.
    vocabulary
        The most subwords, both languages together.
    max_length
        Pairs longer than so many subwords are not trained on; they are validated and tested on.
    beam
        Candidates of the beam search while measuring; 1 is greedy, and quicker.
    validation, test
        How many pairs are held out: always the same ones, sharing no sentence with the others. Where the folder has
        ``validation.tsv`` and ``test.tsv`` these are taken, and pairs that share a sentence with them not trained on.
    subset
        Train on so many pairs only, always the same ones.
    """
    advice = f"sentence pairs as pairs.tsv (source TAB target), or {HOW},"
    names = "pairs.tsv|pairs.tsv.gz"
    wanted = [f"{names}|*Translation-{source}*", f"{names}|*Translation-{target}*"]
    place = find_folder("translation", wanted, advice, folder, known=(APT_LISTS,))
    return TranslationTask(
        partial(read_translation, place, validation, test, subset, source, target), layers=layers, units=units,
        dropout=dropout, tied=tied, vocabulary=vocabulary, max_length=max_length, epochs=epochs, batch_size=batch_size,
        lr=lr, warmup=warmup, clip_norm=clip_norm, label_smoothing=label_smoothing, beam=beam, data_order=data_order,
        place=place,
    )  # fmt: skip


def read_translation(
    folder: Path,
    validation: int = 1000,
    test: int = 1000,
    subset: int | None = None,
    source: str = "en",
    target: str = "de",
) -> Pairs:
    """Return the pairs of ``folder``, split; see :func:`translation`. Errors name the file and the line."""
    files = {
        part: next((folder / f"{part}.tsv{end}" for end in ("", ".gz") if (folder / f"{part}.tsv{end}").exists()), None)
        for part in ("pairs", "validation", "test")
    }  # fmt: skip
    pairs = read_pairs(files["pairs"]) if files["pairs"] else read_debian(folder, source, target)
    if files["validation"] and files["test"]:
        held, last = read_pairs(files["validation"]), read_pairs(files["test"])
        split = Pairs(without(pairs, held + last), without(held, last), tuple(last))
    elif files["validation"] or files["test"]:
        raise ValueError(f"{folder} must hold both validation.tsv and test.tsv, or neither")
    else:
        split = split_pairs(pairs, validation, test)
    train = split.train if subset is None else some_of(split.train, subset)
    return Pairs(train, split.validation, split.test)
