"""Trained quantisation (Han, Mao and Dally 2016, section 3): survivors share few values, and training moves the values.

    w_ij = c[code_ij]           dL/dc_k = sum over ij with code_ij = k of dL/dw_ij           c_k <- c_k - lr dL/dc_k

As with masks, nothing is put into the model. Hooks on the optimizer give every survivor the gradient of its cluster for the
length of a step. Members of a cluster have equal weights, gradients and optimizer state, so that any optimizer that works
weight by weight (SGD with momentum and weight decay, Adam, AdamW, ...) moves them together, exactly as it would move c_k itself
with the same settings. What another optimizer moves apart is put back to the mean of its cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rewound.guarding import guardable
from rewound.mask import Mask
from rewound.parameters import parameters_by_name
from rewound.runtime.codec.codebook import kmeans, nearest
from rewound.spelling import closest

CONVOLUTION_BITS, LINEAR_BITS = 8, 5  # those of the paper's AlexNet and VGG-16


class SharedWeights:
    """The handle that :func:`share_weights` returns: ``codebooks``, ``codes``, ``check()``, ``remove()``."""

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        mask: Mask,
        bits: int | Mapping[str, int] | None,
        reduce: Literal["sum", "mean"],
    ) -> None:
        if reduce not in ("sum", "mean"):
            raise ValueError(f"'reduce' must be 'sum' or 'mean' (got {reduce!r})")
        if not mask.fits(model):
            raise ValueError("the mask does not fit the model: other names or other shapes")
        self.mask = mask
        self.optimizer = guardable(optimizer, model, mask)
        parameters = parameters_by_name(model)
        chosen = bits_of(mask, bits)
        self._layers = {
            name: _Layer(name, parameters[name], kept, (1 << chosen[name]) - 1, reduce)
            for name, kept in mask.items()
        }
        for layer in self._layers.values():
            layer.align(self.optimizer.state.get(layer.p))
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """Name -> the shared values as they are now, in the order of their codes."""
        return {name: layer.codebook() for name, layer in self._layers.items()}

    @property
    def codes(self) -> dict[str, Tensor]:
        """Name -> for each survivor, row by row, the place of its value in the codebook. Fixed while values train."""
        return {name: layer.codes for name, layer in self._layers.items()}

    def check(self) -> None:
        """Raise ``RuntimeError``, naming the tensor, if survivors no longer share their values."""
        for name, layer in self._layers.items():
            if not layer.together():
                raise RuntimeError(
                    f"survivors of {name!r} left their codebook: something wrote to them after the last step of "
                    f"{type(self.optimizer).__name__} (a load_state_dict, a weight average, another optimizer?); share them anew"
                )

    def remove(self) -> None:
        """Take the hooks away; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __repr__(self) -> str:
        levels = sum(layer.levels for layer in self._layers.values())
        return f"SharedWeights({len(self._layers)} tensors, {self.mask.kept:,} weights of {levels:,} values)"

    def _before_step(self, *_: Any) -> None:
        for layer in self._layers.values():
            layer.lend_gradient()

    def _after_step(self, *_: Any) -> None:
        for layer in self._layers.values():
            layer.return_gradient()
            layer.project()


def share_weights(
    optimizer: Optimizer,
    model: nn.Module,
    mask: Mask,
    *,
    bits: int | Mapping[str, int] | None = None,
    reduce: Literal["sum", "mean"] = "sum",
) -> SharedWeights:
    """Move the survivors of each tensor to a codebook now, and train the codebook from the next step of ``optimizer`` on.

    Args:
        optimizer: holds every parameter of ``mask``; its own gradients and lr stay the user's. A sum over a cluster is as many
            times larger than a weight's gradient as the cluster has members: with SGD take a far smaller lr (the paper
            fine-tunes with a small one) or ``reduce="mean"``; Adam does not mind.
        model: the module trained; wrappers are looked through.
        mask: which weights survive (all of a layer, if nothing was pruned). Keep the zeros with ``rewound.guard`` besides.
        bits: of a code, 1 to 8: 2^bits - 1 values besides zero, which has a code of its own as in EIE. One number for all
            tensors, or name -> bits. None: 8 where the tensor has more than two axes, else 5, as in the paper.
        reduce: "sum" is the paper's gradient of a shared value; "mean" divides it by the members of the cluster.

    Returns:
        a :class:`SharedWeights`. Clusters are those of k-means with linear initialisation, and stay; a tensor of no more
        distinct values than codes is shared as it is. ``p.grad`` is the user's again after each step.

    Raises:
        TypeError: for LBFGS and SparseAdam (as ``rewound.guard``), and sharded tensors.
        ValueError: a mask that does not fit, bits out of range, NaN or infinite weights.

    >>> import rewound
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(16, 8)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    >>> mask = rewound.prune(model, density=0.25)
    >>> guarded, shared = rewound.guard(optimizer, model, mask), share_weights(optimizer, model, mask, bits=2)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(2, 16)).square().sum().backward()
    ...     optimizer.step()
    >>> len(model.weight.unique()) <= 4, int((model.weight != 0).sum())     # at most three values, and zero
    (True, 32)
    """
    return SharedWeights(optimizer, model, mask, bits, reduce)


def bits_of(mask: Mask, bits: int | Mapping[str, int] | None) -> dict[str, int]:
    """Return name -> bits of a code, checked."""
    if isinstance(bits, Mapping):
        unknown = [name for name in bits if name not in mask]
        if unknown:
            near = closest(unknown[0], mask, count=1)
            raise ValueError(
                f"'bits' names {unknown[0]!r}, which the mask does not have"
                + (f" (nearest: {near[0]!r})" if near else "")
            )
    found = {}
    for name, kept in mask.items():
        usual = CONVOLUTION_BITS if kept.ndim > 2 else LINEAR_BITS
        chosen = bits.get(name, usual) if isinstance(bits, Mapping) else usual if bits is None else bits
        if type(chosen) is not int or not 1 <= chosen <= 8:
            raise ValueError(f"'bits' must be a whole number from 1 to 8 (got {chosen!r} for {name!r})")
        found[name] = chosen
    return found


class _Layer:
    """One tensor: where its survivors are, which value each has, and the gradient that is lent for a step."""

    def __init__(self, name: str, p: nn.Parameter, kept: Tensor, levels: int, reduce: str) -> None:
        if hasattr(p, "to_local"):
            raise TypeError(
                f"{name!r} is sharded, and its clusters span all shards: share weights before sharding"
            )
        self.name, self.p, self._mean = name, p, reduce == "mean"
        self._places = kept.reshape(-1).nonzero()[:, 0].to(p.device)
        survivors = p.detach().reshape(-1)[self._places].float().cpu().numpy()
        try:
            book = kmeans(survivors, levels)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
        distinct = torch.from_numpy(survivors).unique().numpy()
        if len(distinct) <= levels:
            book = distinct
        self.levels = len(book)
        self.codes = torch.from_numpy(nearest(survivors, book)).to(p.device)
        self._counts = torch.bincount(self.codes, minlength=self.levels)
        self._first = torch.full((self.levels,), len(survivors), device=p.device).scatter_reduce_(
            0, self.codes, torch.arange(len(survivors), device=p.device), "amin"
        )
        self._own: tuple[Tensor, Tensor] | None = None  # the user's gradient, and the one lent instead
        self._write(torch.from_numpy(book).to(p.device, p.dtype)[self.codes])

    def codebook(self) -> Tensor:
        return self._survivors(self.p)[self._first]

    def together(self) -> bool:
        now = self._survivors(self.p)
        return bool(torch.equal(now, now[self._first][self.codes]))

    def lend_gradient(self) -> None:
        grad = self.p.grad
        if grad is None or not self.levels:
            return
        of_clusters = self._sums(self._survivors(grad))
        if self._mean:
            of_clusters = of_clusters / self._counts
        lent = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
        lent.view(-1)[self._places] = of_clusters.to(grad.dtype)[self.codes]
        self._own = (grad, lent)
        self.p.grad = lent

    def return_gradient(self) -> None:
        if self._own is not None and self.p.grad is self._own[1]:
            self.p.grad = self._own[0]
        self._own = None

    def project(self) -> None:
        """Put members that left each other back to the mean of their cluster."""
        if not self.together():
            self._write(self._means(self._survivors(self.p)))

    def align(self, slots: Mapping[str, Any] | None) -> None:
        """Give members the mean of their optimizer state, so that they stay together from now on."""
        for slot in (slots or {}).values():
            if (
                isinstance(slot, Tensor)
                and slot.shape == self.p.shape
                and slot.is_floating_point()
                and self.levels
            ):
                flat = slot.detach().reshape(-1).clone()
                flat[self._places] = self._means(flat[self._places])
                slot.copy_(flat.view(slot.shape))

    def _survivors(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1)[self._places]

    def _sums(self, of_survivors: Tensor) -> Tensor:
        zeros = torch.zeros(self.levels, dtype=torch.float64, device=of_survivors.device)
        return zeros.index_add_(0, self.codes, of_survivors.double())

    def _means(self, of_survivors: Tensor) -> Tensor:
        return (self._sums(of_survivors) / self._counts).to(of_survivors.dtype)[self.codes]

    def _write(self, of_survivors: Tensor) -> None:
        with torch.no_grad():
            if self.p.is_contiguous():
                self.p.view(-1)[self._places] = of_survivors
            else:  # channels last, say
                flat = self.p.reshape(-1)
                flat[self._places] = of_survivors
                self.p.copy_(flat.view(self.p.shape))
