"""Run inside other people's training loops: ``huggingface`` (Trainer) and ``lightning`` (Trainer.fit); ``trackers`` beside any.

Thin adapters.
"""
