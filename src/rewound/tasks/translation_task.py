"""A task over sentence pairs: a GNMT of any size that learns to translate, measured by BLEU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewound.metrics import Metric
from rewound.parameters import unwrap_model
from rewound.tasks.batches import check_data_order, count
from rewound.tasks.buckets import bucketed, within
from rewound.tasks.decoding import beam_search, greedy
from rewound.tasks.evaluation import device_of, evaluating
from rewound.tasks.fingerprint import fingerprint
from rewound.tasks.models import seeded
from rewound.tasks.models.gnmt import Gnmt
from rewound.tasks.pairs import Pair, Pairs
from rewound.tasks.schedules import halving_decay
from rewound.tasks.splits import SPLITS
from rewound.tasks.task import choose
from rewound.tasks.vocabulary import BEGIN, END, PAD, Vocabulary, learn_vocabulary

Inputs = tuple[Tensor, Tensor, Tensor]  # source [b, S], its lengths [b], target [b, T] that begins with BEGIN
Coded = tuple[list[int], list[int]]  # the numbers of a pair
_BUDGET = 50_000_000  # numbers in the largest tensors of a batch that is measured; only memory depends on it


def corpus_bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU (Papineni et al. 2002) in 0..100, with sacrebleu's defaults: cased, its tokenizer "13a"."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU is computed by sacrebleu: pip install 'rewound[translation]'") from error
    return sacrebleu.corpus_bleu(translations, [references]).score


BLEU = Metric("bleu", corpus_bleu, higher_is_better=True)


@dataclass(frozen=True)
class TranslationTask:
    """A complete :class:`~rewound.tasks.task.Task` over sentence pairs: see :func:`translation` for its values.

    The model's input is the tuple (source, its lengths, target so far), its output the scores of each next word. Adam;
    lr from a hundredth in ``warmup`` steps, halved three times in the last quarter; gradients clipped by norm; the loss
    is the mean over words of the cross-entropy with smoothed labels.
    """

    read: Callable[[], Pairs]
    layers: int = 2
    units: int = 128
    dropout: float = 0.2
    tied: bool = False
    vocabulary: int = 4000
    max_length: int = 50
    epochs: int = 10
    batch_size: int = 32
    lr: float = 0.002
    warmup: int = 200
    clip_norm: float = 5.0
    label_smoothing: float = 0.1
    beam: int = 5
    data_order: str = "rewind"
    place: Path | None = None

    name = "translation"
    metric = BLEU.name
    higher_is_better = BLEU.higher_is_better

    def __post_init__(self) -> None:
        check_data_order(self.data_order)
        for option in ("epochs", "batch_size", "beam", "max_length"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option!r} must be at least 1 (got {getattr(self, option)})")

    @cached_property
    def pairs(self) -> Pairs:
        return self.read()

    @cached_property
    def words(self) -> Vocabulary:
        """One vocabulary for both languages, learnt from the training pairs alone."""
        return learn_vocabulary((text for pair in self.pairs.train for text in pair), self.vocabulary)

    @cached_property
    def _train(self) -> tuple[list[Coded], Tensor]:
        """The training pairs that are short enough, and by what they are sorted: target length, then source length."""
        coded = [
            pair for pair in map(self._coded, self.pairs.train) if max(map(len, pair)) <= self.max_length
        ]
        if not coded:
            raise ValueError(
                f"no training pair has at most {self.max_length} subwords: use a larger 'max_length'"
            )
        return coded, torch.tensor([(self.max_length + 1) * len(b) + len(a) for a, b in coded])

    @cached_property
    def example(self) -> Inputs:
        """The inputs of the batch nearest to the mean size: the first of an epoch may be far smaller than most."""
        coded, lengths = self._train
        batches = list(bucketed(lengths, self.batch_size, 0, 0))
        sizes = torch.stack(
            [len(b) * (lengths[b].max() // (self.max_length + 1) + 1) for b in batches]
        ).double()
        typical = batches[int((sizes - sizes.mean()).abs().argmin())]
        return _padded([coded[i] for i in typical.tolist()])[0]

    def fingerprint(self) -> str:
        """Of the pairs it trains and validates on."""
        return fingerprint(text for pair in (*self.pairs.train, *self.pairs.validation) for text in pair)

    @property
    def steps_per_epoch(self) -> int:
        return count(len(self._train[0]), self.batch_size)

    def model(self, seed: int) -> nn.Module:
        size = len(self.words)
        return seeded(seed, lambda: Gnmt(size, self.units, self.layers, self.dropout, self.tied))

    def optimizer(self, model: nn.Module) -> Optimizer:
        return Adam(model.parameters(), lr=self.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def scheduler(self, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
        if self.warmup > steps // 2:
            raise ValueError(
                f"a 'warmup' of {self.warmup} steps is more than half of a training of {steps}: use a smaller one"
            )
        return halving_decay(optimizer, steps, self.warmup)

    def batches(self, epoch: int, seed: int, round: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
        coded, lengths = self._train
        for indices in bucketed(lengths, self.batch_size, epoch, seed, round, self.data_order):
            yield _padded([coded[i] for i in indices.tolist()])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            output.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=self.label_smoothing
        )

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return {"loss": mean over the words of the split, "bleu": of the translations that the model finds}."""
        pairs: tuple[Pair, ...] = getattr(self.pairs, choose("split", split, SPLITS))
        coded, device = [self._coded(pair) for pair in pairs], device_of(model)
        translations, loss, words = [""] * len(pairs), 0.0, 0
        with evaluating(model):
            for batch in self._measured([max(map(len, pair)) for pair in coded]):
                inputs, target = _padded([coded[i] for i in batch])
                output = model(*(part.to(device) for part in inputs)).cpu()
                in_batch = int((target != PAD).sum())
                loss, words = loss + float(self.loss(output, target)) * in_batch, words + in_batch
                for i, found in zip(batch, self._decoded(model, inputs[0].to(device), inputs[1].to(device))):
                    translations[i] = self.words.decode(found)
        return {"loss": loss / words, BLEU.name: BLEU(translations, [target for _, target in pairs])}

    def translate(self, model: nn.Module, sentences: Sequence[str]) -> list[str]:
        """Return the sentences in the target language, as ``model`` and the task's beam search find them."""
        coded = [self.words.encode(sentence) for sentence in sentences]
        found, device = [""] * len(coded), device_of(model)
        with evaluating(model):
            for batch in self._measured([len(one) for one in coded]):
                source, lengths = (part.to(device) for part in _source([coded[i] for i in batch]))
                for i, words in zip(batch, self._decoded(model, source, lengths)):
                    found[i] = self.words.decode(words)
        return found

    def _decoded(self, model: nn.Module, source: Tensor, lengths: Tensor) -> list[list[int]]:
        inner, limit = unwrap_model(model), 2 * lengths + 10
        if self.beam == 1:
            return greedy(inner, source, lengths, limit).tolist()
        return beam_search(inner, source, lengths, limit, self.beam).tolist()

    def _measured(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of batches to measure: what grows is the scores of all words, and what the attention compares."""
        costs = [(1 + n) * (len(self.words) + (1 + n) * self.units) for n in lengths]
        return within(costs, _BUDGET)

    def _coded(self, pair: Pair) -> Coded:
        return self.words.encode(pair[0]), self.words.encode(pair[1])


def _source(sentences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Pad the sentences, each with END after it, so that none is empty; with their lengths."""
    ended = [torch.tensor([*sentence, END]) for sentence in sentences]
    return pad_sequence(ended, batch_first=True, padding_value=PAD), torch.tensor([len(s) for s in ended])


def _padded(pairs: Sequence[Coded]) -> tuple[Inputs, Tensor]:
    """Return the model's inputs, and the target words that it shall find at each place."""
    source, lengths = _source([a for a, _ in pairs])
    shown = pad_sequence([torch.tensor([BEGIN, *b]) for _, b in pairs], batch_first=True, padding_value=PAD)
    wanted = pad_sequence([torch.tensor([*b, END]) for _, b in pairs], batch_first=True, padding_value=PAD)
    return (source, lengths, shown), wanted
