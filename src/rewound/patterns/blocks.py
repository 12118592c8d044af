"""Blocks of neighbouring weights that live or die together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``rows`` x ``columns`` of a weight seen as a matrix [out, everything else], in the order of its memory.

    2x1: two consecutive output channels share every decision. At the lower and right edges blocks may be smaller. A weight
    stored as [in, out, ...] is turned first (``turned``), so that rows are outputs everywhere.

    >>> blocks = Blocks(2, 1)
    >>> blocks.grid(torch.Size([5, 3, 2, 2]))
    torch.Size([3, 12])
    >>> blocks.mean(torch.tensor([[1.0, 2.0], [3.0, 6.0], [7.0, 8.0]]))
    tensor([[2., 4.],
            [7., 8.]])
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.rows * self.columns < 2:
            raise ValueError(
                f"a block must hold two weights or more (got '{self}'); single weights are the pattern 'weight'"
            )

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def grid(self, shape: torch.Size, turned: bool = False) -> torch.Size:
        """Return how many blocks there are down and across."""
        out, rest = _matrix_shape(shape, turned)
        return torch.Size([-(-out // self.rows), -(-rest // self.columns)])

    def mean(self, scores: Tensor, turned: bool = False) -> Tensor:
        """Return the mean of each block: [grid], float32 or float64; a smaller block's over what it has."""
        matrix = _as_matrix(scores, turned)
        matrix = matrix if matrix.dtype is torch.float64 else matrix.float()
        return self._sum(matrix) / self._sum(torch.ones_like(matrix[:, :1])) / self._sum_across(matrix)

    def count(self, mask: Tensor, turned: bool = False) -> Tensor:
        """Return how many weights each block keeps: int64 [grid]."""
        return self._sum(_as_matrix(mask, turned).long())

    def any(self, mask: Tensor, turned: bool = False) -> Tensor:
        """Return which blocks keep any weight: bool [grid]."""
        return self._blocked(_as_matrix(mask, turned)).any(3).any(1)

    def spread(self, kept: Tensor, shape: torch.Size, turned: bool = False) -> Tensor:
        """Return the mask of the weights, in the weight's own shape."""
        out, rest = _matrix_shape(shape, turned)
        matrix = kept.repeat_interleave(self.rows, 0)[:out].repeat_interleave(self.columns, 1)[:, :rest]
        if not turned:
            return matrix.reshape(shape)
        return matrix.reshape(shape[1], shape[0], *shape[2:]).movedim(0, 1)

    def _blocked(self, matrix: Tensor) -> Tensor:
        """[out, rest] -> [down, rows, across, columns], with zeros where a block is smaller."""
        down, across = self.grid(matrix.shape)
        missing = (0, across * self.columns - matrix.shape[1], 0, down * self.rows - matrix.shape[0])
        full = torch.nn.functional.pad(matrix, missing) if any(missing) else matrix
        return full.reshape(down, self.rows, across, self.columns)

    def _sum(self, matrix: Tensor) -> Tensor:
        return self._blocked(matrix).sum((1, 3))

    def _sum_across(self, matrix: Tensor) -> Tensor:
        """Columns in each block."""
        return self._blocked(torch.ones_like(matrix[:1])).sum((1, 3))


def _matrix_shape(shape: torch.Size, turned: bool) -> tuple[int, int]:
    out = shape[1 if turned else 0]
    return out, shape.numel() // out


def _as_matrix(tensor: Tensor, turned: bool) -> Tensor:
    tensor = tensor.detach().movedim(1, 0) if turned else tensor.detach()
    return tensor.reshape(tensor.shape[0], -1)
