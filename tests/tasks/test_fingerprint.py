"""Fingerprints change with the data, and with nothing else: not with the process, the model or the order of batches."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rewound.tasks import load_task
from rewound.tasks.fingerprint import fingerprint, fingerprint_of
from rewound.tasks.pairs import Pairs
from rewound.tasks.splits import Data
from rewound.tasks.tensor_task import TensorTask
from rewound.tasks.translation_task import TranslationTask

X = torch.arange(6.0).view(2, 3)


def test_this_one_stays_what_it_was():
    assert fingerprint([X, torch.tensor([1, 0]), "text"]) == "e7f98202f2be97c1"


@pytest.mark.parametrize(
    "other",
    [
        [X.view(3, 2)],
        [X.double()],
        [X, X],
        [],
        [X + 1e-6],
        ["X"],
        [X[:0]],
        [X.bfloat16()],
        [X.bfloat16().view(torch.int16)],
        [X.half()],
    ],
    ids=["shape", "kind", "twice", "nothing", "value", "text", "empty", "bfloat16", "its bits", "half"],
)
def test_it_changes_with_the_data(other):
    assert fingerprint(other) != fingerprint([X])


def test_texts_that_are_cut_elsewhere_are_others():
    assert len({fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])}) == 4


def test_how_a_tensor_lies_in_memory_does_not_matter():
    assert fingerprint([X.t()]) == fingerprint([X.t().contiguous()])
    assert fingerprint([X.clone().requires_grad_()]) == fingerprint([X])


def test_it_is_the_same_in_another_process():
    code = "from rewound.tasks import load_task; print(load_task('digits').fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert other.stdout.strip() == load_task("digits").fingerprint(), other.stderr


def test_a_task_s_is_of_what_it_trains_and_validates_on():
    def no_test():
        raise AssertionError("the test split was read")

    def task(train=X, validation=X, **options):
        data = Data((train, train), (validation, validation), no_test)
        build = lambda: torch.nn.Linear(3, 3)  # noqa: E731
        return TensorTask("t", lambda: data, build, **{"epochs": 1, "lr": 0.1, **options}).fingerprint()

    assert task() == task(epochs=9, batch_size=1, data_order="fresh")
    assert len({task(), task(train=X + 1), task(validation=X + 1), task(train=X[:1])}) == 4


def test_that_of_a_translation_is_of_its_sentences():
    def task(*train, **options):
        pairs = Pairs(train, (("c", "d"),), (("e", "f"),))
        return TranslationTask(lambda: pairs, **options).fingerprint()

    assert task(("a", "b")) == task(("a", "b"), units=16)
    assert len({task(("a", "b")), task(("a", "B")), task(("a", "b"), ("a", "b"))}) == 3


def test_options_that_change_digits_change_theirs_and_others_do_not():
    plain = load_task("digits").fingerprint()
    assert plain == load_task("digits", hidden=[8], lr=0.5).fingerprint()


def test_it_is_optional():
    assert fingerprint_of(SimpleNamespace()) is None
    assert fingerprint_of(SimpleNamespace(fingerprint="no function")) is None
    assert fingerprint_of(SimpleNamespace(fingerprint=lambda: 7)) == "7"
