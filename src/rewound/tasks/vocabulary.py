"""A vocabulary of subwords: byte pairs (Sennrich et al. 2016) that the ``tokenizers`` library learns.

Over bytes there is no unknown word: every text comes back from its numbers as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PAD, BEGIN, END = 0, 1, 2  # numbers that no text holds: they are not the tokenizer's
_OWN = 3
SMALLEST = _OWN + 256


class Vocabulary:
    """Texts to numbers and back; ``len`` is the number of numbers, those of PAD, BEGIN and END among them.

    >>> words = learn_vocabulary(["a game of cards", "a game of dice"], 300)
    >>> words.decode(words.encode("a game"))
    'a game'
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return _OWN + self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a text, without BEGIN and END."""
        return [_OWN + number for number in self._tokenizer.encode(text).ids]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text of ``numbers`` up to the first END; PAD and BEGIN say nothing."""
        numbers = list(numbers)
        numbers = numbers[: numbers.index(END)] if END in numbers else numbers
        return self._tokenizer.decode([number - _OWN for number in numbers if number >= _OWN]).strip()


def learn_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Return the vocabulary of at most ``size`` numbers that joins the pairs most frequent in ``texts``.

    Pairs that occur once are not joined, so few texts give fewer. Raises ``ValueError`` for a size below 259 (one number
    for each byte, and three), ``ImportError`` without the library.
    """
    if size < SMALLEST:
        raise ValueError(
            f"'vocabulary' must be at least {SMALLEST}, one number for each byte and three more (got {size})"
        )
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError(
            "the vocabulary is learnt by tokenizers: pip install 'rewound[translation]'"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )  # a word is one word at the start too
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - _OWN,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer)
