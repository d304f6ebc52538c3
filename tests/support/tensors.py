"""Third-order tensors for Tucker decompositions."""

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.tucker import Tucker2

SHAPES = {"kernel": (20, 14, 9), "wide": (6, 30, 4), "matrix": (18, 12, 1), "few": (4, 3, 25)}
CASES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Return a float64 tensor of standard normal numbers."""
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def of_ranks(shape: tuple[int, int, int], ranks: tuple[int, int]) -> Tensor:
    """Return a random tensor of given ranks along its first two modes."""
    (m, n, p), (r, s) = shape, ranks
    core, outer, inner = gaussian(r, s, p), gaussian(m, r, seed=1), gaussian(n, s, seed=2)
    return product(Tucker2(outer, core, inner))


def decaying(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return a random tensor with decaying spectra along both modes."""
    m, n, _ = shape
    scales = torch.arange(1, m + 1).double()[:, None, None] * torch.arange(1, n + 1).double()[:, None]
    left, right = (torch.linalg.qr(gaussian(size, size, seed=seed + 1)).Q for size in (m, n))
    return torch.einsum("abp,ma,nb->mnp", gaussian(*shape, seed=seed) / scales, left, right)


def product(found: Tucker2) -> Tensor:
    """Return core ×₁ outer ×₂ inner."""
    return torch.einsum("rsp,mr,ns->mnp", found.core, found.outer, found.inner)


def error(x: Tensor, found: Tucker2) -> float:
    """Return the Frobenius error of a decomposition."""
    return float(torch.linalg.vector_norm(x - product(found)))


def assert_all_orthogonal(found: Tucker2) -> None:
    """Assert orthonormal bases, and slices of the core that are orthogonal along both modes, by descending norm."""
    for basis in (found.outer, found.inner):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for slices in (found.core.flatten(1), found.core.transpose(0, 1).flatten(1)):
        gram = slices @ slices.mT
        norms = gram.diagonal()
        assert float((gram - norms.diag()).abs().max()) < 1e-10 * float(norms.max())
        assert bool((norms[:-1] >= norms[1:]).all())
