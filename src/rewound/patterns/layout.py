"""Which axis of a weight is its input, and which its output."""

from __future__ import annotations

from torch import nn

from rewound.parameters import named_modules, parameters_by_name


def input_first(model: nn.Module) -> frozenset[str]:
    """Return the weights stored as [in, out, ...]; all others are [out, in, ...].

    Transposed convolutions and Hugging Face's Conv1D (told by its name: it is a linear layer) are.

    >>> model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1), nn.Conv1d(3, 4, 1))
    >>> sorted(input_first(model))
    ['0.weight']
    """
    names = {id(p): name for name, p in parameters_by_name(model).items()}
    return frozenset(
        names[id(module.weight)]
        for _, module in named_modules(model)
        if isinstance(module, nn.modules.conv._ConvTransposeNd) or _is_hugging_face_conv1d(module)
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    )


def _is_hugging_face_conv1d(module: nn.Module) -> bool:
    return not isinstance(module, nn.Conv1d) and any(c.__name__ == "Conv1D" for c in type(module).__mro__)
