"""The Hugging Face Trainer: a small BERT learns from scratch, and ``train()`` trains, prunes, rewinds and retrains it."""

import os
import tempfile

import torch
import transformers

from rewound.integrations.huggingface import prepare

transformers.set_seed(0)
transformers.logging.set_verbosity_error()
tokens = torch.randint(0, 50, (512, 8))
rows = [{"input_ids": t, "labels": (t[0] > t[1]).long()} for t in tokens]  # is the first token the larger?

config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)
trainer = transformers.Trainer(
    model=transformers.BertForSequenceClassification(config),
    args=transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=1 if os.environ.get("REWOUND_QUICK") else 12,  # T: the original run's
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=rows[:384],
    eval_dataset=rows[384:],
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
)

rewind = prepare(trainer, until="3 rounds")  # what rewound.Run takes; run.log gets what is evaluated
print(rewind.plan)
trainer.train()
print(rewind.result)
