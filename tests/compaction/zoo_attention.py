"""Attention written out, and PyTorch's own modules for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.compaction.zoo_layers import Steps
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """One matrix for queries, keys and values: reshape [N, T, 3, heads, d], permute, unbind (as in timm)."""

    def __init__(self, width: int, heads: int, *, fused: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, width // heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, **options: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = (
            nn.LayerNorm(width),
            FusedAttention(width, heads, **options),
            nn.LayerNorm(width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), 1e-5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attn(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks with layer scale."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.cls, self.position = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 10, 12))
        self.blocks = nn.Sequential(Block(12, 4, **options), Block(12, 3, **options))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class GroupedQueryAttention(nn.Module):
    """Rotary positions; two query heads share each key/value head (repeat, or SDPA's enable_gqa)."""

    def __init__(self, width: int, heads: int, kv_heads: int, dim: int, *, repeat: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.repeat = heads, kv_heads, dim, repeat
        self.q, self.o = nn.Linear(width, heads * dim, bias=False), nn.Linear(heads * dim, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * dim, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.dim).transpose(1, 2)
        k, v = (f(x).view(n, t, self.kv_heads, self.dim).transpose(1, 2) for f in (self.k, self.v))
        q, k = self._rotated(q), self._rotated(k)
        if not self.repeat:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (z.repeat_interleave(self.heads // self.kv_heads, dim=1) for z in (k, v))
            future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            scores = (q @ k.transpose(2, 3) / self.dim**0.5).masked_fill(future, float("-inf"))
            y = scores.softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, t, -1))

    def _rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)[:, None]
        rates = 10_000.0 ** (-torch.arange(0, self.dim, 2, dtype=x.dtype, device=x.device) / self.dim)
        cos, sin = (f(torch.cat((angles * rates,) * 2, dim=-1)) for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin


class Decoder(nn.Module):
    """Token and position tables, RMSNorm, rotary grouped-query attention, gated perceptron, tied head."""

    def __init__(self, *, repeat: bool, kv_heads: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(23, 14), nn.Embedding(8, 14)
        self.norm1, self.attention = RMSNorm(14), GroupedQueryAttention(14, 4, kv_heads, 6, repeat=repeat)
        self.norm2, self.gate, self.up = (
            RMSNorm(14),
            nn.Linear(14, 18, bias=False),
            nn.Linear(14, 18, bias=False),
        )
        self.down, self.norm = nn.Linear(18, 14, bias=False), RMSNorm(14)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return F.linear(self.norm(x), self.embed.weight)


class LinearAttention(nn.Module):
    """Softmax-free: phi(q) (phi(k)' v) by its normaliser; phi = elu + 1 is one at zero, in every head feature."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.qkv, self.out = nn.Linear(5, 10), nn.Linear(10, 36, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.inlet(x)).view(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = torch.einsum("bhtd,bhde->bhte", q, torch.einsum("bhsd,bhse->bhde", k, v))
        y = y / torch.einsum("bhtd,bhd->bht", q, k.sum(2))[..., None]
        return self.out(y.transpose(1, 2).flatten(2))


class TalkingHeads(nn.Module):
    """Heads mixed by small matrices before and after the softmax: a head here is also a feature there."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 36), nn.Linear(12, 3)
        self.before, self.after = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(torch.tanh(self.inlet(x))).reshape(n, t, 3, 4, 3).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        weights = self.after(scores.softmax(dim=2)).permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """Learned queries read the input by cross-attention; nn.MultiheadAttention with its own key width."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.norm = nn.Parameter(torch.zeros(4, 12)), nn.LayerNorm(12)
        self.cross = nn.MultiheadAttention(12, 3, kdim=5, vdim=5, batch_first=True)
        self.mlp, self.fc = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        y = latents + self.cross(latents, x, x, need_weights=False)[0]
        return self.fc((y + self.mlp(self.norm(y))).mean(1))


def _classifier(m: Steps, x: Tensor) -> tuple[Tensor, Tensor]:
    """nn.MultiheadAttention with its weights returned (averaged over the heads), which pins the heads."""
    x = m.inlet(x)
    y, weights = m.attention(x, x, x)
    return m.fc(F.relu(m.mlp(m.norm(x + y))).mean(0)), weights


def _no_weights(m: Steps, x: Tensor) -> Tensor:
    """The same without weights returned: the heads are free."""
    x = m.inlet(x)
    x = m.norm(x + m.attention(x, x, x, need_weights=False)[0])
    return m.fc(F.relu(m.mlp(x)).mean(0))


def _mha(forward) -> Steps:
    layers = {"inlet": nn.Linear(5, 12), "attention": nn.MultiheadAttention(12, 4), "norm": nn.LayerNorm(12)}
    return Steps(forward, **layers, mlp=nn.Linear(12, 18), fc=nn.Linear(18, 3))


def _encoder(*, norm_first: bool, **options) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 20, norm_first=norm_first, batch_first=True, **options)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 12), encoder, nn.Linear(12, 4))


def _tokens(length: int = 7, vocabulary: int = 23) -> Tensor:
    return torch.randint(0, vocabulary, (2, length))


MODELS = {
    "vit_fused_qkv": lambda: (VisionTransformer(fused=True), torch.randn(2, 3, 12, 12)),
    "vit_matmul": lambda: (VisionTransformer(fused=False), torch.randn(2, 3, 12, 12)),
    "vit_qk_norm": lambda: (VisionTransformer(fused=True, qk_norm=True), torch.randn(2, 3, 12, 12)),
    "decoder_gqa": lambda: (Decoder(repeat=False), _tokens()),
    "decoder_gqa_repeat": lambda: (Decoder(repeat=True), _tokens()),
    "decoder_multi_query": lambda: (Decoder(repeat=True, kv_heads=1), _tokens()),
    "linear_attention": lambda: (LinearAttention(), torch.randn(2, 7, 5)),
    "talking_heads": lambda: (TalkingHeads(), torch.randn(2, 7, 5)),
    "perceiver": lambda: (Perceiver(), torch.randn(2, 7, 5)),
    "multihead_attention": lambda: (_mha(_no_weights), torch.randn(7, 2, 5)),
    "multihead_attention_weights": lambda: (_mha(_classifier), torch.randn(7, 2, 5)),
    "transformer_encoder": lambda: (_encoder(norm_first=False), torch.randn(2, 7, 5)),
    "transformer_encoder_pre_norm": lambda: (
        _encoder(norm_first=True, activation="gelu"),
        torch.randn(2, 7, 5),
    ),
    "transformer": lambda: (
        nn.Transformer(12, 4, 1, 1, 18, batch_first=True),
        (torch.randn(2, 7, 12), torch.randn(2, 5, 12)),
    ),
}
