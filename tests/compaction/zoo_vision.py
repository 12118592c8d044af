"""Networks that keep the image: segmentation, detection, super-resolution, sound and video; image attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.compaction.zoo_residual import Head, SqueezeExcite, conv_norm, images
from torch import Tensor, nn


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolutions on the way up, logits a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_norm(3, 8), conv_norm(8, 12), conv_norm(12, 20)
        self.up2, self.join2 = nn.ConvTranspose2d(20, 10, 2, 2), conv_norm(22, 12)
        self.up1, self.join1 = nn.ConvTranspose2d(12, 6, 4, 2, padding=1), conv_norm(14, 8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.join2(torch.cat([two, self.up2(x)], dim=1))
        return self.last(self.join1(torch.cat([self.up1(x), one], dim=1)))


class SegNet(nn.Module):
    """Upsampling to where the maxima were: the indices of the pooling carry the channel axis as well."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.last = conv_norm(3, 10), conv_norm(10, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, where = F.max_pool2d(self.encode(x), 2, return_indices=True)
        return self.last(self.decode(F.max_unpool2d(x, where, 2)))


class FeaturePyramid(nn.Module):
    """Lateral 1 x 1 convolutions, nearest upsampling and sums; one head reads every level; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.c2, self.c3 = conv_norm(8, 12, stride=2), conv_norm(12, 16, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 10, 1) for c in (8, 12, 16))
        self.smooth = nn.ModuleList(nn.Conv2d(10, 10, 3, padding=1) for _ in range(3))
        self.head = nn.Sequential(conv_norm(10, 9), nn.Conv2d(9, 4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = [self.stem(x)]
        levels.append(self.c2(levels[-1]))
        levels.append(self.c3(levels[-1]))
        x, outputs = self.lateral[2](levels[2]), []
        for i in (2, 1, 0):
            if i < 2:
                x = F.interpolate(x, scale_factor=2, mode="nearest") + self.lateral[i](levels[i])
            outputs.append(self.head(self.smooth[i](x)))
        return tuple(outputs)


class CrossStage(nn.Module):
    """YOLO: a block that chunks, grows a list and concatenates it (C2f); pooled copies of one tensor (SPPF);
    and a detection head that views its channels as anchors x values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.cv1, self.cv2 = conv_norm(8, 16, 1), conv_norm(32, 14, 1)
        self.inner = nn.ModuleList(nn.Sequential(conv_norm(8, 6), conv_norm(6, 8)) for _ in range(2))
        self.spp1, self.spp2 = conv_norm(14, 7, 1), conv_norm(28, 14, 1)
        self.detect = nn.Conv2d(14, 3 * 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(self.stem(x)).chunk(2, 1))
        for block in self.inner:
            parts.append(block(parts[-1]) + parts[-1])
        x = self.cv2(torch.cat(parts, 1))
        pooled = [self.spp1(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, stride=1, padding=2))
        x = self.detect(self.spp2(torch.cat(pooled, 1)))
        n, _, h, w = x.shape
        return x.view(n, 3, 7, h, w).permute(0, 1, 3, 4, 2).reshape(n, -1, 7)


class AtrousPyramid(nn.Module):
    """DeepLab: dilated branches and a pooled branch that is stretched back, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, stride=2)
        rates = (1, 2, 3)
        self.branches = nn.ModuleList(conv_norm(12, 6, padding=r, dilation=r) for r in rates)
        self.pooled, self.project = conv_norm(12, 5, 1), conv_norm(23, 10, 1)
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.stem(x)
        whole = self.pooled(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
        x = self.last(self.project(torch.cat([branch(x) for branch in self.branches] + [whole], dim=1)))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class SubPixel(nn.Module):
    """Super-resolution: pixel shuffle turns four channels into one, so units of the last but one layer are
    quadruples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 8, 3, padding=1)
        self.up, self.refine = nn.Conv2d(8, 6 * 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.last, self.shuffle = nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.body(torch.tanh(self.first(x))))
        y = F.relu(self.refine(self.shuffle(self.up(y))))
        return self.shuffle(self.last(y)) + F.interpolate(x, scale_factor=4, mode="bicubic")


class PatchDown(nn.Module):
    """Space to depth (pixel unshuffle): one channel becomes four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_norm(3, 6), nn.PixelUnshuffle(2)
        self.mix, self.head = conv_norm(24, 10), Head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.down(self.stem(x))))


class PixelAttention(nn.Module):
    """Self-attention between pixels, queries, keys and values by 1 x 1 convolutions (BigGAN, diffusion)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.query, self.key = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 6, 1)
        self.value, self.out = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)
        self.gamma, self.head = nn.Parameter(torch.zeros(1)), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)  # [N, pixels, pixels]
        y = (v @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])
        return self.head(x + self.gamma * self.out(y))


class ConvBlockAttention(nn.Module):
    """CBAM: a gate a channel from mean and maximum of the image through one shared network, then a gate a
    pixel from mean and maximum over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_norm(3, 12), Head(10)
        self.shared = nn.Sequential(
            nn.Conv2d(12, 5, 1, bias=False), nn.ReLU(), nn.Conv2d(5, 12, 1, bias=False)
        )
        self.spatial, self.last = nn.Conv2d(2, 1, 3, padding=1), conv_norm(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mean, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * torch.sigmoid(self.shared(mean) + self.shared(most))
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.head(self.last(x * torch.sigmoid(self.spatial(summary))))


class SelectiveKernel(nn.Module):
    """SKNet: a softmax between branches decides, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.large = conv_norm(3, 8), conv_norm(8, 12), conv_norm(8, 12, 5)
        self.squeeze, self.choose, self.head = nn.Linear(12, 6), nn.Linear(6, 24), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.stack([self.small(x), self.large(x)], dim=1)  # [N, 2, C, H, W]
        scores = self.choose(F.relu(self.squeeze(both.sum(1).mean((2, 3))))).view(-1, 2, 12)
        return self.head((both * scores.softmax(dim=1)[..., None, None]).sum(1))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, then channels last: LayerNorm, two linear layers, a layer scale, stochastic depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class Video(nn.Module):
    """R(2+1)D: a 3-D convolution as space, then time."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.norm = nn.Conv3d(2, 10, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(10)
        self.time, self.last = nn.Conv3d(10, 8, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(8, 6, 3)
        self.fc = nn.Linear(6 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.time(F.relu(self.norm(self.space(x)))))
        return self.fc(F.avg_pool3d(F.relu(self.last(x)), (1, 4, 4)).flatten(1))


class WaveNet(nn.Module):
    """Dilated causal convolutions over time with tanh x sigmoid gates, residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(1, 8, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(6, 10, 1) for _ in range(3))
        self.out1, self.out2 = nn.Conv1d(10, 9, 1), nn.Conv1d(9, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inlet(x), 0.0
        for i, dilated in enumerate(self.dilated):
            signal, gate = dilated(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            y = torch.tanh(signal) * torch.sigmoid(gate)
            total, x = total + self.skip[i](y), x + self.residual[i](y)
        return self.out2(F.relu(self.out1(F.relu(total))))


class Excited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_norm(3, 12), conv_norm(12, 12), Head(12)
        self.excite = SqueezeExcite(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x + self.excite(self.b(x)))


MODELS = {
    "unet": lambda: (UNet(), images()),
    "segnet": lambda: (SegNet(), images(size=8)),
    "feature_pyramid": lambda: (FeaturePyramid(), images()),
    "yolo": lambda: (CrossStage(), images()),
    "deeplab": lambda: (AtrousPyramid(), images()),
    "sub_pixel": lambda: (SubPixel(), images(1, 6)),
    "pixel_unshuffle": lambda: (PatchDown(), images(size=8)),
    "pixel_attention": lambda: (PixelAttention(), images(size=7)),
    "cbam": lambda: (ConvBlockAttention(), images(size=8)),
    "selective_kernel": lambda: (SelectiveKernel(), images(size=8)),
    "squeeze_excite": lambda: (Excited(), images(size=8)),
    "convnext_block": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8), ConvNeXtBlock(8), Head(8)),
        images(),
    ),
    "video": lambda: (Video(), torch.randn(2, 2, 4, 6, 6)),
    "wavenet": lambda: (WaveNet(), torch.randn(2, 1, 12)),
}
