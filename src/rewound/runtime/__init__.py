"""The sparse CPU engine: a pruned network that skips its zeros. Importable without torch."""
