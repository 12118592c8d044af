"""Runtimes side by side on one network: torch, torch.compile, ONNX Runtime, OpenVINO and the sparse engine.

    compare.py   the whole comparison              runtimes.py  how each makes a file and runs it
    turns.py     calls that take turns             fresh.py     load time and memory, in a process of its own
    networks.py  the network, its dense twin, its outputs in float64
    telling.py   the table                         verdict.py   what it means, in a sentence

Importing it, or ``runtimes``, ``turns`` and ``fresh``, imports no torch.
"""
