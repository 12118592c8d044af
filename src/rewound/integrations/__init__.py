"""Run inside other people's training loops: ``huggingface`` (Trainer) and ``lightning`` (Trainer.fit). Thin adapters."""
