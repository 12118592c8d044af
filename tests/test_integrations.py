"""The Hugging Face Trainer and Lightning's drive a Run by their own events, on tiny models without a download."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

T, STEPS = 4, 3
TOKENS = torch.randint(0, 30, (24, 6), generator=torch.Generator().manual_seed(1))
LABELS = (TOKENS[:, 0] > 14).long()


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("module", "needs"), [("huggingface", "transformers"), ("lightning", "lightning")])
def test_a_missing_extra_is_named(module, needs):
    code = f"import sys; sys.modules[{needs!r}] = None; import rewound.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install 'rewound[{module}]'" in done.stderr.splitlines()[-1]


# ---- Hugging Face -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers", reason="needs the extra 'huggingface'")
    module.logging.set_verbosity_error()
    return module


@pytest.fixture
def trainer_of(transformers, tmp_path):
    def make(seed=0, callbacks=(), accuracies=None, **arguments):
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        transformers.set_seed(seed)
        said = iter(accuracies or ())

        def metrics(prediction):
            found = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
            return {"accuracy": next(said, found)}

        defaults = {
            "output_dir": str(tmp_path / "trainer"), "num_train_epochs": T, "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 24,
            "learning_rate": 1e-3, "lr_scheduler_type": "linear", "eval_strategy": "epoch", "save_strategy": "no",
            "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "weight_decay": 0.01,
        }  # fmt: skip
        rows = [{"input_ids": tokens, "labels": label} for tokens, label in zip(TOKENS, LABELS)]
        return transformers.Trainer(
            model=transformers.BertForSequenceClassification(config),
            args=transformers.TrainingArguments(**{**defaults, **arguments}),
            train_dataset=rows, eval_dataset=rows, compute_metrics=metrics, callbacks=list(callbacks),
        )  # fmt: skip

    return make


def prepare(trainer, **options):
    from rewound.integrations import huggingface

    return huggingface.prepare(trainer, **options)


def quiet_train(trainer, method="train", *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Trainer's own, such as pinned memory without a GPU
        return getattr(trainer, method)(*args)


def test_trainer_runs_all_rounds_on_the_schedule_of_the_original_run(trainer_of, transformers, tmp_path):
    trainer = trainer_of(save_strategy="epoch", save_total_limit=1)
    order = []
    trainer.data_collator = lambda rows: (
        order.append([int(r["input_ids"].sum()) for r in rows]) or transformers.default_data_collator(rows)
    )
    rewind = prepare(trainer, technique="lr-rewinding:2ep", until="2 rounds")
    assert rewind.plan.total_epochs == trainer.args.num_train_epochs == 8
    quiet_train(trainer)
    result = rewind.result
    assert result.finished
    assert [r.epochs for r in result.rounds] == [4, 2, 2]
    # the linear schedule goes to zero in T epochs, as it does without rewound
    expected = 1e-3 * (1 - np.arange(T * STEPS) / (T * STEPS))
    np.testing.assert_allclose(result.trace.lr[: T * STEPS, 0], expected, rtol=1e-12)
    np.testing.assert_array_equal(
        result.trace.lr[T * STEPS :], np.tile(result.trace.lr[2 * STEPS : T * STEPS], (2, 1))
    )
    # every epoch was evaluated, and its metrics logged without prefix and timings
    assert all(set(entry) == {"loss", "accuracy"} for r in result.rounds for entry in r.log)
    # the epoch that comes again brings its data order again
    seen = np.array([batch for batch in order if len(batch) == 8]).reshape(8, STEPS * 8)
    assert len(np.unique(seen, axis=0)) == T
    np.testing.assert_array_equal(seen[T:], np.tile(seen[2:T], (2, 1)))
    # the Trainer's own checkpoint is a plain model with true zeros
    (checkpoint,) = (tmp_path / "trainer").glob("checkpoint-*")
    saved = transformers.BertForSequenceClassification.from_pretrained(checkpoint).state_dict()
    for name, kept in rewind.run.mask.items():
        assert not saved[name][~kept].any(), name
        assert torch.equal(saved[name], trainer.model.state_dict()[name])
    with pytest.raises(RuntimeError, match="trains once"):
        quiet_train(trainer)


def test_trainer_prunes_a_model_that_arrives_trained(trainer_of):
    trainer = trainer_of(lr_scheduler_type="cosine", warmup_steps=4)
    rewind = prepare(trainer, pretrained=True, technique="fine-tuning:1ep", until="2 rounds")
    assert trainer.args.num_train_epochs == 2
    quiet_train(trainer)
    assert [r.epochs for r in rewind.result.rounds] == [0, 1, 1]
    assert set(rewind.result.trace.lr.ravel()) == {1e-3}


def test_trainer_run_stops_by_a_metric_and_has_the_last_good_weights(trainer_of):
    trainer = trainer_of(num_train_epochs=2, accuracies=[0.5, 0.9, 0.9, 0.9, 0.9, 0.5])
    rewind = prepare(trainer, until="accuracy drops 0.1")
    quiet_train(trainer)
    assert trainer.state.epoch == 6
    assert rewind.result.best == 1
    assert "accuracy 0.5 in round 2, 0.9 in the original run" in rewind.result.stopped
    assert rewind.run.density == pytest.approx(0.8, abs=1e-3)
    for name, kept in rewind.run.mask.items():
        assert not trainer.model.state_dict()[name][~kept].any()


def test_trainer_run_resumes_to_the_bit_and_a_finished_one_stays_as_it_is(trainer_of, transformers, tmp_path):
    options = {"technique": "lr-rewinding:2ep", "until": "2 rounds"}
    whole = trainer_of()
    prepare(whole, **options)
    quiet_train(whole)

    class Kill(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **live):
            if state.global_step == 17:
                raise Stopped

    trainer = trainer_of(callbacks=[Kill()])
    prepare(trainer, **options, folder=tmp_path / "run")
    with pytest.raises(Stopped):
        quiet_train(trainer)
    trainer.callback_handler.callbacks[-1]._epochs.close()  # as the death of the process would
    for trained in (True, False):
        trainer = trainer_of(seed=5)  # all comes from the folder
        rewind = prepare(trainer, **options, folder=tmp_path / "run")
        quiet_train(trainer)
        assert (
            1 < trainer.state.global_step <= 12 if trained else trainer.state.global_step == 1
        )  # and undone
        assert rewind.result.finished
        assert [r.epochs for r in rewind.result.rounds] == [4, 2, 2]
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, trainer.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_steps": 5}, "counted in epochs"),
        ({"num_train_epochs": 1.5}, "whole number"),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "unpruned"),
        ({"eval_strategy": "no"}, "eval_strategy='epoch'"),
    ],
)
def test_trainer_arguments_that_contradict_a_run_are_refused(trainer_of, arguments, match):
    with pytest.raises(ValueError, match=match):
        prepare(trainer_of(**arguments), until=(0.5, "accuracy drops 0.1"))


def test_trainer_checkpoint_is_no_place_to_go_on_from(trainer_of, tmp_path):
    quiet_train(trainer_of(num_train_epochs=1, save_strategy="epoch"))
    trainer = trainer_of()
    prepare(trainer, until="1 round")
    with pytest.raises(ValueError, match="without resume_from_checkpoint"):
        quiet_train(trainer, "train", True)


# ---- Lightning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="needs the extra 'lightning'")


@pytest.fixture
def fit(lightning, tmp_path):
    class Module(lightning.LightningModule):
        optimizers_wanted = 1

        def __init__(self, values=(), seed=0):
            super().__init__()
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 2))
            self.values, self.stepping = iter(values), None

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, index):
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def on_train_epoch_end(self):  # after the callbacks' own
            self.log("late", next(self.values, 1.0))

        def configure_optimizers(self):
            self.stepping = self.trainer.estimated_stepping_batches
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            if self.optimizers_wanted == 2:
                return [optimizer, torch.optim.SGD(self.parameters(), lr=0.1)]
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=self.stepping)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    data = torch.utils.data.TensorDataset(TOKENS, LABELS)

    def run(callbacks, module=None, **arguments):
        fit_arguments = {key: arguments.pop(key) for key in ["ckpt_path"] if key in arguments}
        module = module or Module()
        trainer = lightning.Trainer(**{
            "max_epochs": T, "callbacks": callbacks, "accelerator": "cpu", "logger": False, "barebones": False,
            "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
            "default_root_dir": tmp_path / "lightning", **arguments,
        })  # fmt: skip
        train = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lightning's own, such as the number of loader workers
            trainer.fit(module, train, torch.utils.data.DataLoader(data, batch_size=24), **fit_arguments)
        return module, trainer

    run.Module = Module
    return run


def callback(**options):
    from rewound.integrations import lightning

    return lightning.RewindCallback(**options)


def test_lightning_runs_all_rounds_on_the_schedule_of_the_original_run(fit, tmp_path):
    rewind = callback(technique="lr-rewinding:2ep", until="2 rounds", scope="net.3.*")
    with pytest.raises(RuntimeError, match=r"begins with trainer\.fit"):
        _ = rewind.plan
    module, trainer = fit([rewind], fit.Module(values=range(8)), enable_checkpointing=True)
    result = rewind.result
    assert result.finished
    assert trainer.current_epoch == rewind.plan.total_epochs == 8
    assert module.stepping == T * STEPS
    assert [r.epochs for r in result.rounds] == [4, 2, 2]
    assert result.trace.lr[: T * STEPS].max() == pytest.approx(0.2, rel=0.1)
    assert result.trace.lr[T * STEPS - 1] < 1e-3
    np.testing.assert_array_equal(
        result.trace.values[T * STEPS : -2 * STEPS], result.trace.values[2 * STEPS : T * STEPS]
    )
    np.testing.assert_array_equal(
        result.trace.values[-2 * STEPS :], result.trace.values[2 * STEPS : T * STEPS]
    )
    assert [entry["late"] for r in result.rounds for entry in r.log] == list(range(8))
    assert all(set(entry) == {"late", "accuracy", "train_loss"} for r in result.rounds for entry in r.log)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, kept in rewind.run.mask.items():
        assert not saved[name][~kept].any()
        assert torch.equal(saved[name], module.state_dict()[name])


def test_lightning_run_stops_by_a_metric_and_has_the_last_good_weights(fit):
    rewind = callback(until="late drops 0.1")
    module, trainer = fit([rewind], fit.Module(values=[0.5, 0.9, 0.9, 0.9, 0.9, 0.5]), max_epochs=2)
    assert trainer.current_epoch == 6
    assert rewind.result.best == 1
    assert rewind.run.density == pytest.approx(0.8, abs=0.01)
    for name, kept in rewind.run.mask.items():
        assert not module.state_dict()[name][~kept].any()


def test_lightning_run_resumes_to_the_bit_and_a_finished_one_stays_as_it_is(fit, lightning, tmp_path):
    options = {"technique": "lr-rewinding:2ep", "until": "2 rounds"}
    whole, _ = fit([callback(**options)])

    class Kill(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 17:
                raise Stopped

    rewind = callback(**options, folder=tmp_path / "run")
    with pytest.raises(Stopped):
        fit([rewind, Kill()])
    for trained in (True, False):
        rewind = callback(**options, folder=tmp_path / "run")
        module, trainer = fit([rewind], fit.Module(seed=5))  # all comes from the folder
        assert 0 < trainer.global_step <= 12 if trained else trainer.global_step == 0
        assert rewind.result.finished
        assert [r.epochs for r in rewind.result.rounds] == [4, 2, 2]
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, module.state_dict()[name]), name


def test_lightning_setups_that_contradict_a_run_are_refused(fit, tmp_path):
    two = fit.Module()
    two.optimizers_wanted, two.automatic_optimization = 2, False
    with pytest.raises(ValueError, match="has 2 optimizers"):
        fit([callback(until=0.5)], two)
    with pytest.raises(ValueError, match="counted in epochs"):
        fit([callback(until=0.5)], max_steps=7)
    used = callback(until="1 round")
    _, trainer = fit([used], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match="serves one fit"):
        fit([used])
    with pytest.raises(ValueError, match="without ckpt_path"):
        fit([callback(until="1 round")], ckpt_path=tmp_path / "a.ckpt")
