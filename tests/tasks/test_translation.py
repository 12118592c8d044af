"""The translation task: what it reads, batches, network, BLEU, and a whole run on a toy language."""

import random
import re
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import rewound
from rewound.measure.cost import flops_by_weight
from rewound.tasks import drive, example_of, load_task, train_epoch
from rewound.tasks.batches import order
from rewound.tasks.buckets import bucketed, within
from rewound.tasks.decoding import beam_search, greedy
from rewound.tasks.models.gnmt import Gnmt
from rewound.tasks.pairs import Pairs
from rewound.tasks.schedules import halving_factor
from rewound.tasks.translation import read_translation
from rewound.tasks.translation_task import BLEU, TranslationTask, corpus_bleu
from rewound.tasks.vocabulary import BEGIN, END, PAD, SMALLEST, learn_vocabulary

pytest.importorskip("tokenizers", reason="needs the extra 'translation'")
pytest.importorskip("sacrebleu", reason="needs the extra 'translation'")
WORDS = ["red", "old", "big", "shy", "odd", "mad", "sad", "wet"]
RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "translation.toml"
SMALL = {
    "units": 32, "vocabulary": 300, "batch_size": 16, "validation": 20, "test": 20, "warmup": 4, "beam": 1,
    "epochs": 2, "dropout": 0.0,
}  # fmt: skip


def write_pairs(folder, n=200):
    """A toy language: the words of the source in the opposite order."""
    draw = random.Random(0)
    sentences = {tuple(draw.choices(WORDS, k=draw.randint(3, 5))) for _ in range(2 * n)}
    lines = [f"{' '.join(s)}\t{' '.join(reversed(s))}\n" for s in sorted(sentences)]
    draw.shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.tsv").write_text("".join(lines[:n]), encoding="utf-8")
    return folder


@pytest.fixture
def task(tmp_path):
    return load_task("translation", folder=str(write_pairs(tmp_path / "toy")), **SMALL)


def test_the_task_and_its_batches(task):
    assert (task.name, task.metric, task.higher_is_better, task.epochs) == ("translation", "bleu", True, 2)
    assert task.steps_per_epoch == 10  # 160 of 200 pairs, 16 at a time
    seen = []
    for (source, lengths, shown), wanted in task.batches(0, seed=0):
        assert source.dtype == lengths.dtype == shown.dtype == wanted.dtype == torch.int64
        assert source.shape == (16, int(lengths.max()))
        assert (source == PAD).sum(1).tolist() == (source.shape[1] - lengths).tolist()
        assert (source.gather(1, lengths.unsqueeze(1) - 1) == END).all()
        assert (shown[:, 0] == BEGIN).all()
        assert torch.equal(
            torch.where(shown[:, 1:] == PAD, END, shown[:, 1:])[wanted[:, :-1] > PAD],
            wanted[:, :-1][wanted[:, :-1] > PAD],
        )
        seen += [
            (task.words.decode(a), task.words.decode(b)) for a, b in zip(source.tolist(), wanted.tolist())
        ]
    assert sorted(seen) == sorted(task.pairs.train)
    assert all(source.split() == target.split()[::-1] for source, target in seen)


def test_data_order_follows_from_seed_and_epoch(task):
    def first(epoch, seed, round=0, **options):
        return [y.tolist() for _, y in replace(task, **options).batches(epoch, seed, round)]

    assert first(1, 0) == first(1, 0, round=2)
    assert first(1, 0) != first(2, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0, round=2, data_order="fresh") != first(1, 0)
    assert first(1, 0, data_order="fresh") == first(1, 0)


def test_flops_are_counted_on_a_batch_of_mean_size(tmp_path):
    pairs = [(f"{'red ' * (1 + i % 12)}{i}", f"{'old ' * (1 + i % 12)}{i}") for i in range(400)]
    task = TranslationTask(lambda: Pairs(tuple(pairs), (), ()), batch_size=8, vocabulary=300)
    sizes = [shown.numel() for (_, _, shown), _ in task.batches(0, 0)]
    mean = sum(sizes) / len(sizes)
    assert task.example[2].numel() in sizes
    assert task.example[2].numel() == pytest.approx(mean, rel=0.1)
    assert any(size < mean / 2 for size in sizes)
    assert example_of(task, 7) is task.example


def test_long_pairs_are_measured_but_not_trained_on(task):
    lengths = [max(len(task.words.encode(text)) for text in pair) for pair in task.pairs.train]
    longest = max(lengths)
    short = replace(task, max_length=longest - 1, batch_size=1)
    assert short.steps_per_epoch == sum(n < longest for n in lengths) < 160
    assert len(short.pairs.validation) == 20
    with pytest.raises(
        ValueError, match="no training pair has at most 1 subwords: use a larger 'max_length'"
    ):
        _ = replace(task, max_length=1).steps_per_epoch


def test_buckets_hold_every_example_once_and_little_padding():
    lengths = torch.randint(1, 60, (1003,))
    found = list(bucketed(lengths, 10, epoch=3, seed=1))
    assert sorted(torch.cat(found).tolist()) == list(range(1003))
    assert len(found) == 101
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in found)
    shuffled = sum(int(lengths[batch].max()) * len(batch) for batch in order(1003, 1, 3).split(10))
    assert int(lengths.sum()) > 0.9 * padded
    assert shuffled > 1.5 * padded
    assert [batch.tolist() for batch in found] != [batch.tolist() for batch in bucketed(lengths, 10, 4, 1)]


def test_batches_that_are_measured_keep_within_their_budget():
    costs = [5, 1, 9, 3, 3, 20]
    found = list(within(costs, 10))
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(costs[i] for i in batch) <= 10 for batch in found)


def test_every_text_comes_back_from_the_vocabulary():
    words = learn_vocabulary(["the cat sat on the mat", "the cat sat", "die Katze sa\u00df"], 300)
    for text in ("the cat", "Stra\u00dfe \u2013 \U0001f408", "<s> </s> <pad>", "tab\tand\\", ""):
        numbers = words.encode(text)
        assert words.decode(numbers) == text
        assert words.decode([BEGIN, *numbers, END, PAD, numbers[0] if numbers else PAD]) == text
        assert all(END < number < len(words) for number in numbers)
    assert SMALLEST < len(words) < 300  # what occurs once is not joined
    assert len(words.encode("the cat sat")) == 3
    assert words.encode("the cat") == words.encode("the cat sat")[:2]
    with pytest.raises(ValueError, match=r"'vocabulary' must be at least 259, .* \(got 258\)"):
        learn_vocabulary(["a"], 258)


def test_the_vocabulary_knows_the_training_pairs_alone(task):
    everything = [text for part in vars(task.pairs).values() for pair in part for text in pair]
    rare = [(a.replace("red", "zebra"), b) for a, b in task.pairs.validation]
    other = replace(task, read=lambda: replace(task.pairs, validation=tuple(rare)))
    assert [other.words.encode(text) for text in everything] == [
        task.words.encode(text) for text in everything
    ]
    assert len(other.words.encode("zebra")) > 1


def test_bleu():
    texts = ["the cat sat on the mat .", "a dog ran off with the ball"]
    assert corpus_bleu(texts, texts) == pytest.approx(100)
    assert corpus_bleu(["", ""], texts) == 0
    assert 0 < corpus_bleu(["the cat sat on a mat .", texts[1]], texts) < 100
    assert BLEU.higher_is_better


@pytest.mark.parametrize(("layers", "tied"), [(2, False), (3, True), (4, False)])
def test_the_network(layers, tied):
    model = Gnmt(50, units=8, layers=layers, tied=tied)
    source, lengths, shown = (
        torch.randint(3, 50, (4, 6)),
        torch.tensor([6, 1, 3, 5]),
        torch.randint(3, 50, (4, 9)),
    )
    output = model(source, lengths, shown)
    assert output.shape == (4, 9, 50)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())
    assert (model.softmax.weight is model.target_embedding.weight) == tied
    weights = flops_by_weight(model, (source, lengths, shown))
    assert {n for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n} <= {*weights} | {
        "softmax.weight" if tied else ""
    }


def test_recurrent_weights_are_drawn_orthogonal_and_forget_gates_open():
    for lstm in (m for m in Gnmt(50, units=8, layers=3).modules() if isinstance(m, nn.LSTM)):
        for gate in lstm.weight_hh_l0.chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(8))
        biases = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)
        assert (
            [float(bias.min()) for bias in biases] == [0, 1, 0, 0] == [float(bias.max()) for bias in biases]
        )


def test_one_layer_has_nowhere_to_send_its_attention():
    with pytest.raises(ValueError, match=r"'layers' must be at least 2: .* \(got 1\)"):
        Gnmt(50, layers=1)


def test_the_network_of_the_paper():
    with torch.device("meta"):
        model = Gnmt(32_000, units=1024, layers=4)
    assert sum(p.numel() for p in model.parameters()) == 192_783_616
    assert sum(isinstance(m, nn.LSTM) for m in model.modules()) == 5 + 4  # the first layer reads both ways


def test_padding_changes_nothing():
    model = Gnmt(50, units=8, layers=3).double().eval()
    source, lengths, shown = (
        torch.randint(3, 50, (4, 6)),
        torch.tensor([6, 1, 3, 5]),
        torch.randint(3, 50, (4, 5)),
    )
    with torch.no_grad():
        together = model(source, lengths, shown)
        for i, n in enumerate(lengths.tolist()):
            alone = model(source[i : i + 1, :n], lengths[i : i + 1], shown[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-14)
        assert not torch.equal(model(source, torch.tensor([6, 2, 3, 5]), shown)[1], together[1])


def test_the_first_layer_reads_both_ways_as_a_packed_lstm_does():
    model = Gnmt(50, units=8).double().eval()
    both = nn.LSTM(8, 8, batch_first=True, bidirectional=True).double()
    own = {f"{n}_reverse": w for n, w in model.backwards.named_parameters()} | dict(
        model.forwards.named_parameters()
    )
    both.load_state_dict(own)
    source, lengths = torch.randint(3, 50, (4, 6)), torch.tensor([6, 1, 3, 5])
    packed = nn.utils.rnn.pack_padded_sequence(
        model.source_embedding(source), lengths, batch_first=True, enforce_sorted=False
    )
    wanted = nn.utils.rnn.pad_packed_sequence(both(packed)[0], batch_first=True)[0]
    read = []
    model.encoder[0].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model.encode(source, lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(read[0][i, :n], wanted[i, :n], rtol=1e-12, atol=1e-14)


def test_word_by_word_is_all_at_once():
    model = Gnmt(50, units=8, layers=3).double().eval()
    source, lengths, shown = (
        torch.randint(3, 50, (4, 6)),
        torch.tensor([6, 1, 3, 5]),
        torch.randint(3, 50, (4, 5)),
    )
    memory, states, steps = model.encode(source, lengths), None, []
    for t in range(5):
        scores, states = model.decode(shown[:, t : t + 1], memory, states)
        steps.append(scores)
    torch.testing.assert_close(torch.cat(steps, 1), model(source, lengths, shown), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tied", [False, True])
def test_the_network_can_be_captured(tied):
    model = Gnmt(50, units=8, layers=3, tied=tied).eval()
    inputs = (torch.randint(3, 50, (4, 6)), torch.tensor([6, 1, 3, 5]), torch.randint(3, 50, (4, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its own recurrent layers
        program = torch.export.export(model, inputs, strict=False)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("aten.lstm.input") == 4 + 3
    other = (inputs[0], torch.tensor([2, 6, 6, 1]), inputs[2])
    for example in (inputs, other):  # lengths are data, not constants of the program
        torch.testing.assert_close(program.module()(*example), model(*example))


def test_the_schedule():
    factors = [halving_factor(step, 1200, warmup=200) for step in range(1300)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[100] == pytest.approx(0.1)
    assert all(b / a == pytest.approx(100 ** (1 / 200)) for a, b in pairwise(factors[:201]))
    assert [factors.count(f) for f in (1.0, 0.5, 0.25)] == [700, 100, 100]
    assert factors[1100:] == [0.125] * 200


def test_optimizer_and_schedule_of_the_paper(task):
    optimizer = task.optimizer(task.model(0))
    assert isinstance(optimizer, torch.optim.Adam)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.002,
        (0.9, 0.999),
        1e-8,
        0,
    )
    task.scheduler(optimizer, 20, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.00002)
    with pytest.raises(
        ValueError, match="a 'warmup' of 11 steps is more than half of a training of 20: use a smaller"
    ):
        replace(task, warmup=11).scheduler(optimizer, 20, 10)
    defaults = load_task("translation", folder=task.place)
    assert (defaults.clip_norm, defaults.dropout, defaults.label_smoothing, defaults.warmup, defaults.beam) == (
        5.0, 0.2, 0.1, 200, 5,
    )  # fmt: skip


def test_gradients_are_clipped(task):
    norms = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.cat(gradients).norm()))
            return super().step(closure)

    for clip in (1e6, 0.01):
        model = task.model(0)
        train_epoch(replace(task, clip_norm=clip), model, Watched(model.parameters(), lr=0.0), None, 0, 0)
    assert min(norms[:10]) > 0.01
    assert max(norms[10:]) < 0.0101


def test_the_loss_leaves_padding_out(task):
    output = torch.randn(2, 4, 10)
    target = torch.tensor([[5, 3, END, PAD], [4, END, PAD, PAD]])
    wanted = nn.functional.cross_entropy(
        torch.cat([output[0, :3], output[1, :2]]), torch.tensor([5, 3, END, 4, END]), label_smoothing=0.1
    )
    torch.testing.assert_close(task.loss(output, target), wanted)


def test_the_loss_of_a_split_is_its_mean_over_words(task, monkeypatch):
    model = task.model(0)
    whole = task.evaluate(model)["loss"]
    monkeypatch.setattr("rewound.tasks.translation_task._BUDGET", 1)  # one pair at a time
    assert task.evaluate(model)["loss"] == pytest.approx(whole, rel=1e-5)
    assert task.evaluate(model, "test")["loss"] != pytest.approx(whole, rel=1e-5)
    with pytest.raises(ValueError, match="'split' cannot be 'train'"):
        task.evaluate(model, "train")


def test_it_learns_the_toy_language(tmp_path):
    options = {**SMALL, "units": 48, "batch_size": 32, "epochs": 20, "lr": 0.005, "warmup": 20}
    task = load_task("translation", folder=str(write_pairs(tmp_path, 800)), **options, label_smoothing=0.0)
    model = task.model(0)
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer, 20 * task.steps_per_epoch, task.steps_per_epoch)
    before = task.evaluate(model)
    for epoch in range(20):
        train_epoch(task, model, optimizer, scheduler, epoch, seed=0)
    after = task.evaluate(model)
    assert model.training
    assert before["bleu"] < 5
    assert after["bleu"] > 50
    assert after["loss"] < before["loss"] / 4
    found = task.translate(model, [source for source, _ in task.pairs.validation])
    assert corpus_bleu(found, [target for _, target in task.pairs.validation]) == after["bleu"]
    assert replace(task, beam=4).evaluate(model)["bleu"] > 50


def test_a_run_prunes_it(task, tmp_path):
    options = {"technique": "weight-rewinding:1ep", "until": ("2 rounds", "bleu drops 90"), "rate": 0.5}
    options["allocation"] = "uniform"  # weights that have hardly learnt differ by how they were drawn
    result, test = drive(task, seed=0, folder=tmp_path / "run", **options)
    assert [round.density for round in result.rounds] == pytest.approx([1, 0.5, 0.25], abs=1e-4)
    assert all({"bleu", "loss", "train_loss"} <= set(round.metrics) for round in result.rounds)
    assert set(test) == {"bleu", "loss"}
    again, _ = drive(task, seed=0, **options)
    assert [round.metrics for round in again.rounds] == [round.metrics for round in result.rounds]


def test_gradients_of_its_batches_are_evidence(task):
    model = task.model(0)
    evidence = rewound.Evidence(model, batches=task.batches(0, 0), loss=task.loss)
    mask = rewound.prune(model, 0.5, criterion="gradient", evidence=evidence)
    assert mask.density == pytest.approx(0.5, abs=1e-3)


def test_the_recipe_runs(tmp_path):
    from rewound.experiment.plan import make_plan
    from rewound.experiment.recipe import read_recipe

    small = [f"task_options.{key}={value}" for key, value in SMALL.items() if key != "epochs"]
    folder = write_pairs(tmp_path / "toy")
    recipe = read_recipe(RECIPE, [*small, f"task_options.folder={folder}", "until=2 rounds", "epochs=2"])
    plan = make_plan(recipe)
    assert plan["metric"] == {"name": "bleu", "higher_is_better": True}
    assert len(recipe.techniques) >= 2


def test_splits_of_ones_own(tmp_path):
    folder = write_pairs(tmp_path / "toy")
    first = (folder / "pairs.tsv").read_text().splitlines()[0]
    (folder / "validation.tsv").write_text(f"{first}\nnew one\tanother new\n")
    with pytest.raises(ValueError, match=r"must hold both validation\.tsv and test\.tsv, or neither"):
        read_translation(folder)
    (folder / "test.tsv").write_text("New one!\tyet another\n")
    found = read_translation(folder)
    assert found.test == (("New one!", "yet another"),)
    assert found.validation == (tuple(first.split("\t")),)
    held = set(first.split("\t"))
    assert 190 < len(found.train) < 200
    assert all(held.isdisjoint(pair) for pair in found.train)
    assert len(read_translation(folder, subset=50).train) == 50


def test_places_that_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("rewound.tasks.translation.APT_LISTS", str(tmp_path / "no-apt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWOUND_DATA", str(tmp_path / "sets"))
    with pytest.raises(FileNotFoundError) as error:
        load_task("translation")
    says = str(error.value)
    assert re.match(
        r"translation is not there: get sentence pairs as pairs\.tsv \(source TAB target\), or apt's", says
    )
    assert "'apt-get -o Acquire::Languages=en,de update'" in says
    assert str(tmp_path / "sets" / "translation") in says
    lists = tmp_path / "no-apt"
    lists.mkdir()
    (lists / "a_i18n_Translation-en.xz").touch()
    with pytest.raises(FileNotFoundError):
        load_task("translation")
    (lists / "a_i18n_Translation-de").touch()
    assert load_task("translation").place == lists
    with pytest.raises(FileNotFoundError):
        load_task("translation", target="fr")
    write_pairs(tmp_path / "sets" / "translation")
    assert load_task("translation").place == tmp_path / "sets" / "translation"


@pytest.mark.parametrize("option", ["epochs", "batch_size", "beam", "max_length"])
def test_options_below_one_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option!r} must be at least 1"):
        load_task("translation", folder=write_pairs(tmp_path), **{option: 0})


def test_a_network_without_half_of_its_units_translates_as_the_masked_one():
    model = Gnmt(50, units=8, layers=3).double().eval()
    example = (torch.randint(3, 50, (4, 6)), torch.tensor([6, 1, 3, 5]), torch.randint(3, 50, (4, 5)))
    mask = rewound.prune(model, 0.5, pattern="hidden unit", example=example)
    small = rewound.compact(model, mask, example)
    mask.apply_(model)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    source, lengths = torch.randint(3, 50, (5, 9)), torch.tensor([2, 9, 4, 1, 8])
    with torch.no_grad():
        for find in (greedy, beam_search):
            found = find(small, source, lengths, 2 * lengths)
            assert torch.equal(found, find(model, source, lengths, 2 * lengths))
