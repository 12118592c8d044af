"""Pooling and upsampling: a constant stays itself, unless zeros come in, of a padding or between the maxima."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from rewound.compaction.constants.holding import NAN, Rule, called, numbers, unknown
from rewound.compaction.queries import short
from rewound.compaction.reading import product

if TYPE_CHECKING:
    from rewound.compaction.constants.reckoner import Reckoner


def _over_space(self: Reckoner, node: fx.Node, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
    """A constant stays itself, unless zeros come in."""
    name = short(node)
    if name.startswith("avg_pool"):
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = {**dict(zip(names, arguments)), **keywords}
        spoiled = any(numbers(given.get("padding", 0))) and given.get("count_include_pad", True)
        if spoiled or given.get("divisor_override") is not None:
            x = x.double().masked_fill(x != 0, NAN)
    elif name in ("grid_sampler", "grid_sampler_2d", "im2col", "max_unpool2d", "max_unpool3d"):
        x = x.double().masked_fill(x != 0, NAN)
    if name == "im2col":
        kernel = numbers(arguments[0])
        times = product(kernel if len(kernel) > 1 else kernel * 2)
        return (
            x.amax((-1, -2))[..., None]
            if x.shape[1] == 1
            else x.amax((-1, -2)).repeat_interleave(times, 1)[..., None]
        )
    result = unknown(node)
    return [x, *result[1:]] if isinstance(result, list) else x


_KINDS = "avg_pool{0}d adaptive_avg_pool{0}d max_pool{0}d adaptive_max_pool{0}d max_pool{0}d_with_indices upsample_nearest{0}d"

RULES: dict[str, Rule] = {
    **called(_over_space, " ".join(_KINDS.format(n) for n in (1, 2, 3))),
    **called(
        _over_space, "_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
    ),
    **called(
        _over_space,
        "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d im2col "
        "max_unpool2d max_unpool3d",
    ),
}
