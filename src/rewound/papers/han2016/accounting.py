"""The size of a pruned and shared network by the arithmetic of Deep Compression (Han, Mao and Dally 2016, sections 2 to 4).

For a layer of ``size`` weights of which ``entries`` are stored (survivors, and padding zeros where a run of zeros is too long for
the index; ``codec/relative.py``), with codes of b bits, runs of r bits and a codebook of k values:

    dense                  32 size
    pruned                 (32 + r) entries
    pruned + shared        (b + r) entries + 32 k
    + Huffman              the entries' codes and runs, each in a Huffman code of the layer, and the codes' lengths (a byte for
                           each symbol); the codebook as before

Everything that the mask does not name (biases, norms) counts 32 bits a number everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from rewound.mask import Mask
from rewound.papers.han2016.sharing import bits_of
from rewound.parameters import parameters_by_name, whole
from rewound.runtime.codec import huffman
from rewound.runtime.codec.relative import gaps_of, padded

CONVOLUTION_INDEX, LINEAR_INDEX = 8, 5  # bits of a run of zeros in the paper


@dataclass(frozen=True)
class CompressedLayer:
    """One layer; sizes in bits. entries: survivors and padding zeros. code_bits, run_bits: of an entry, before Huffman's code;
    huffman_code, huffman_run: the same after it, on average."""

    name: str
    size: int
    kept: int
    entries: int
    levels: int
    code_bits: int
    run_bits: int
    dense: int
    pruned: int
    shared: int
    huffman: int
    huffman_code: float
    huffman_run: float


@dataclass(frozen=True)
class Compressed:
    """Layers, and ``rest``: bits of everything else. ``str()`` is the table of the paper (its Tables 2 to 5)."""

    layers: tuple[CompressedLayer, ...]
    rest: int

    def bits(self, stage: str = "huffman") -> int:
        """Bits of the whole network; stage: "dense", "pruned", "shared" or "huffman"."""
        if stage not in ("dense", "pruned", "shared", "huffman"):
            raise ValueError(f"'stage' must be 'dense', 'pruned', 'shared' or 'huffman' (got {stage!r})")
        return self.rest + sum(getattr(layer, stage) for layer in self.layers)

    def ratio(self, stage: str = "huffman") -> float:
        """Bits of the dense network / bits at a stage: the paper's compression rate."""
        return self.bits("dense") / max(1, self.bits(stage))

    def __str__(self) -> str:
        head = ("layer", "weights", "kept", "code bits", "with H", "run bits", "with H", "P", "P+Q", "P+Q+H")
        rows: list[tuple[str, ...]] = [head]
        for layer in self.layers:
            shares = (
                f"{getattr(layer, stage) / max(1, layer.dense):.2%}"
                for stage in ("pruned", "shared", "huffman")
            )
            rows.append(
                (
                    layer.name,
                    f"{layer.size:,}",
                    f"{layer.kept / max(1, layer.size):.1%}",
                    str(layer.code_bits),
                )
                + (f"{layer.huffman_code:.1f}", str(layer.run_bits), f"{layer.huffman_run:.1f}", *shares)
            )
        total = (f"{1 / self.ratio(stage):.2%}" for stage in ("pruned", "shared", "huffman"))
        rows.append(("all", f"{self.bits('dense') // 32:,}", "", "", "", "", "", *total))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        table = "\n".join(
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
            for row in rows
        )
        stages = f"{self.ratio('pruned'):.1f} pruned, {self.ratio('shared'):.1f} shared"
        return f"{table}\n{self.ratio():.1f} times smaller than dense ({stages})"


def compressed(
    model: nn.Module,
    mask: Mask,
    *,
    bits: int | Mapping[str, int] | None = None,
    run_bits: int | None = None,
) -> Compressed:
    """Return the size of a network after each stage of Deep Compression.

    model: its survivors shared (:func:`~rewound.papers.han2016.sharing.share_weights`, with the same ``bits``).
    run_bits: of a run of zeros, 1 to 8; None: 8 for tensors of more than two axes, else 5, as in the paper. Runs go over
    the whole tensor, row by row. A survivor that has become zero is not stored.

    ``ValueError``: a tensor with more distinct values than its codes can name.

    >>> import torch
    >>> layer = nn.Linear(64, 4, bias=False)
    >>> kept = torch.arange(256).view(4, 64) % 8 == 7
    >>> _ = layer.weight.data.copy_(kept * torch.tensor([0.5, -0.5]).repeat(2).view(4, 1))
    >>> found = compressed(layer, Mask({"weight": kept}), bits=2)
    >>> found.bits("dense"), found.bits("pruned"), found.bits("shared")       # 32 entries of 2 + 5 bits, two values
    (8192, 1184, 288)
    """
    if not mask.fits(model):
        raise ValueError("the mask does not fit the model: other names or other shapes")
    if run_bits is not None and (type(run_bits) is not int or not 1 <= run_bits <= 8):
        raise ValueError(f"'run_bits' must be a whole number from 1 to 8 (got {run_bits!r})")
    chosen = bits_of(mask, bits)
    layers, rest = [], 0
    for name, p in parameters_by_name(model).items():
        if name in mask:
            weight = whole(p.detach()).float().cpu().numpy().reshape(-1)
            usual = CONVOLUTION_INDEX if p.ndim > 2 else LINEAR_INDEX
            layers.append(_layer(name, weight, chosen[name], run_bits or usual))
        else:
            rest += 32 * p.numel()
    return Compressed(tuple(layers), rest)


def _layer(name: str, weight: np.ndarray, bits: int, run_bits: int) -> CompressedLayer:
    places = np.flatnonzero(weight)
    book, codes = np.unique(weight[places], return_inverse=True)
    if len(book) >= 1 << bits:
        raise ValueError(
            f"{name!r} has {len(book):,} values, and {bits} bits name {(1 << bits) - 1} besides zero: share them first, with "
            "han2016.share_weights(optimizer, model, mask, bits=...)"
        )
    gaps = gaps_of(np.zeros_like(places), places)
    stored, runs = padded(gaps, codes + 1, run_bits)
    entries = len(stored)
    of_codes, of_runs = huffman.size_bits(stored), huffman.size_bits(runs)
    lengths = 8 * (len(book) + 1 + (1 << run_bits)) if entries else 0
    return CompressedLayer(
        name,
        size=weight.size,
        kept=len(places),
        entries=entries,
        levels=len(book),
        code_bits=bits,
        run_bits=run_bits,
        dense=32 * weight.size,
        pruned=(32 + run_bits) * entries,
        shared=(bits + run_bits) * entries + 32 * len(book),
        huffman=of_codes + of_runs + lengths + 32 * len(book),
        huffman_code=of_codes / max(1, entries),
        huffman_run=of_runs / max(1, entries),
    )
