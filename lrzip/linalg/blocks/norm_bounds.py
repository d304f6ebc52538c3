"""Bounds on the norm of a positive semidefinite operator that is available only through products with vectors.

k steps of Lanczos from a random vector give a Ritz value that is below (1 − ε) ‖B‖₂ with a probability of at most
1.648 √n exp(−√ε (2k − 1)) (Kuczyński & Woźniakowski 1992, theorem 4.2). The Krylov space of several start vectors
contains that of each, so the probabilities of independent vectors multiply.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, sqrt

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.orthogonal import ensure_orthogonal, orthonormalize
from lrzip.linalg.blocks.sketches import gaussian

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NormBounds:
    """Lower and upper bound on a spectral norm.

    Attributes:
        lower: At most the norm, up to rounding.
        upper: At least the norm, except with a probability of at most `failure`.
        failure: Probability over the random start vectors.
    """

    lower: float
    upper: float
    failure: float


def lanczos_norm(
    apply: Operator,
    columns: int,
    *,
    steps: int = 6,
    probes: int = 8,
    failure: float = 1e-6,
    generator: Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> NormBounds:
    """Return bounds on the norm of a symmetric positive semidefinite operator by block Lanczos from Gaussian vectors.

    For n = 2000 the bounds differ by 43 % with the defaults, and by 8 % with 12 steps.

    Args:
        apply: x (n, l) ↦ Bx (n, l).
        columns: n of B (n, n).
        steps: k ≥ 1, applications of B.
        probes: Number of start vectors.
        failure: Probability, above 0 and below 1, with which the upper bound may fail.
        generator: Source of the start vectors, on the CPU.
        dtype: Dtype of the vectors given to the operator.
        device: Device of the vectors given to the operator.
    """
    blocks = [orthonormalize(gaussian(columns, min(probes, columns), generator=generator, dtype=dtype, device=device))]
    images = [apply(blocks[0])]
    for _ in range(steps - 1):
        known = torch.cat(blocks, dim=1)
        fresh = min(probes, columns - known.shape[1])
        if fresh == 0:
            break
        candidates = images[-1][:, :fresh]
        rest = _complement(known, _complement(known, candidates))
        blocks.append(ensure_orthogonal(known, candidates, orthonormalize(rest)))
        images.append(apply(blocks[-1]))
    basis, image = torch.cat(blocks, dim=1), torch.cat(images, dim=1)
    projected = basis.mT @ image
    lower = float(torch.linalg.eigvalsh((projected + projected.mT) / 2)[-1].clamp(min=0))
    shortfall = ((log(1.648 * sqrt(columns)) - log(failure) / probes) / (2 * steps - 1)) ** 2
    return NormBounds(lower, lower / (1 - shortfall) if shortfall < 1 else inf, failure)


def _complement(known: Tensor, columns: Tensor) -> Tensor:
    """Return the part of columns that is orthogonal to known orthonormal vectors."""
    return columns - known @ (known.mT @ columns)
