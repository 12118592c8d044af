"""The two steps for one layer: which input units to keep (LASSO), and what its weights become (least squares)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

_ROWS = 400  # rows of the LASSO: so many of the samples, each with all outputs, as in the authors' code


def select(gram: Tensor, moments: Tensor, count: int) -> Tensor:
    """Return which ``count`` units the LASSO keeps: bool [units].

    The problem is: minimise |T - sum_i beta_i Z_i|^2 / 2 + lambda |beta|_1, Z_i what unit i contributes to the output with
    the weights as they are (not normalised: norms are part of beta). gram: <Z_i, Z_j>, float64 [units, units]. moments:
    <Z_i, T>. Lambda is doubled until few enough units are left and then bisected, until count to 1.1 count units have
    beta != 0; of those the ``count`` with the largest |beta_i| |Z_i| stay. Where LASSO leaves fewer, however small lambda is
    (dead or repeated units), the others with the largest |Z_i| fill the places. Ties go to the earlier unit.

    >>> z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]).double()       # unit 2 repeats unit 0, twice as large
    >>> select(z.T @ z, z.T @ torch.tensor([3.0, 1.0]).double(), 2)
    tensor([False,  True,  True])
    """
    sizes = gram.diagonal().clamp_min(0).sqrt()
    beta = _beta(gram, moments, count)
    order = sorted(range(len(gram)), key=lambda i: (-abs(float(beta[i] * sizes[i])), -float(sizes[i]), i))
    kept = torch.zeros(len(gram), dtype=torch.bool)
    kept[order[:count]] = True
    return kept


def _beta(gram: Tensor, moments: Tensor, count: int) -> Tensor:
    """Return the LASSO's coefficients at a lambda that leaves ``count`` to 1.1 ``count`` of them, or as near above as found."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import Lasso
    except ImportError as error:
        raise ImportError(
            "the channel selection of He et al. 2017 is scikit-learn's LASSO: pip install 'rewound[tasks]'"
        ) from error
    design, target = _small(gram, moments)
    scale = target.norm().clamp_min(1e-300)
    x, y = (design / scale).numpy(), (target / scale).numpy()
    lasso: Any = Lasso(fit_intercept=False, warm_start=True, max_iter=10_000, tol=1e-6)

    def fit(alpha: float) -> Tensor:
        lasso.alpha = alpha
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # which units are zero is settled long before
            return torch.from_numpy(lasso.fit(x, y).coef_.copy())

    low, high = 0.0, float(abs(x.T @ y).max().clip(1e-300)) / len(y) * 1e-4
    best = found = fit(high)
    for _ in range(60):
        left = int(found.count_nonzero())
        if left >= count:
            low, best = high, found
        if left <= 1.1 * count:
            break
        high *= 2
        found = fit(high)
    for _ in range(60):
        if count <= int(best.count_nonzero()) <= 1.1 * count:
            break
        middle = (low + high) / 2
        found = fit(middle)
        if int(found.count_nonzero()) >= count:
            low, best = middle, found
        else:
            high = middle
    return best


def _small(gram: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return a design R [units, units] and a target y with R'R = gram and R'y = moments: the same LASSO, of any number of
    rows, in a small matrix."""
    values, vectors = torch.linalg.eigh(gram)
    roots = values.clamp_min(0).sqrt()
    used = roots > roots.max() * 1e-7
    design = roots[:, None] * vectors.T
    target = torch.where(used, vectors.T @ moments / roots.where(used, torch.ones_like(roots)), 0.0)
    return design, target


def moments_of(
    inputs: Tensor, target: Tensor, weight: Tensor, columns: Tensor, importance: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Return (gram, moments) of what the units contribute to the outputs of one layer, in float64.

    inputs: [rows, all columns]. target: [rows, n], what the units together should give. weight: [n, all columns]. columns:
    [units, k], which columns belong to a unit. importance: [n], by what an output is multiplied right after. At most 400
    rows, drawn from ``seed``, are used; each output is centred over them, since a bias is fitted afterwards.
    """
    if len(inputs) > _ROWS:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(inputs), generator=generator)[:_ROWS]
        inputs, target = inputs[chosen], target[chosen]
    units, k = columns.shape
    x = inputs[:, columns.reshape(-1)].double()
    x = (x - x.mean(0)).reshape(len(x), units, k).transpose(0, 1)  # [units, rows, k]
    w = (weight[:, columns.reshape(-1)].double() * importance[:, None]).reshape(-1, units, k)
    t = (target.double() - target.double().mean(0)) * importance
    gram, moments = torch.zeros(units, units).double(), torch.zeros(units).double()
    step = max(1, (1 << 22) // (units * len(t)))  # outputs at once, so that Z stays small
    for start in range(0, len(w), step):
        some = slice(start, start + step)
        z = torch.bmm(x, w[some].permute(1, 2, 0)).reshape(units, -1)  # Z_i = X_i W_i'
        gram += z @ z.T
        moments += z @ t[:, some].reshape(-1)
    return gram, moments


def least_squares(
    inputs: Tensor, target: Tensor, weight: Tensor, *, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Return (weight [n, columns], bias [n]), float64, that bring inputs @ weight.T + bias nearest to ``target``.

    Where the samples leave a choice (fewer rows than columns), the nearest to the weight given. Without ``intercept`` the
    bias is zero.
    """
    x, t, w = inputs.double(), target.double(), weight.double()
    middle_x, middle_t = (x.mean(0), t.mean(0)) if intercept else (torch.zeros(()), torch.zeros(()))
    x, t = x - middle_x, t - middle_t
    if x.shape[1]:
        missing = t - x @ w.T
        w = w + torch.linalg.lstsq(x, missing, driver="gelsy").solution.T
    bias = middle_t - w @ middle_x if intercept else torch.zeros(len(w)).double()
    return w, bias
