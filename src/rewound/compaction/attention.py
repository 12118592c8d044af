"""``nn.MultiheadAttention`` with fewer heads than its width is made of: PyTorch's own forward insists on heads x dimension
= width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """What :func:`rewound.compact` makes of an ``nn.MultiheadAttention`` whose heads were removed: the same arguments, the same
    results. ``num_heads`` heads of ``head_dim`` (values: whatever their projection gives) on inputs of width
    ``embed_dim``; scores
    are multiplied by ``scale``, which does not follow when the head dimension becomes smaller.
    """

    scale: float

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False, **_: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases)
        )
        mask = _additive(attn_mask, q, k, self.num_heads)
        if key_padding_mask is not None:
            padding = _as_added(key_padding_mask, q.dtype)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        scores = q @ k.transpose(-2, -1) * self.scale
        attended = (scores if mask is None else scores + mask).softmax(-1)
        dropped = F.dropout(attended, self.dropout, self.training)
        out = self.out_proj((dropped @ v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        shown = None
        if need_weights:
            shown = dropped.mean(1) if average_attn_weights else dropped
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            shown = None if shown is None else shown.squeeze(0)
        return out, shown


def _additive(mask: Tensor | None, q: Tensor, k: Tensor, heads: int) -> Tensor | None:
    if mask is None:
        return None
    mask = _as_added(mask, q.dtype)
    return mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True = not attended to) as numbers to add."""
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)
