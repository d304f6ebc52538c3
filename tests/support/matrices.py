"""Matrices with a chosen spectrum."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor


def with_spectrum(
    shape: tuple[int, int], values: Tensor, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Return a matrix with given singular values and Haar-distributed singular vectors."""
    generator = Generator().manual_seed(seed)
    m, n = shape
    u = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator)).Q
    matrix: Tensor = (u * values.double()) @ v.mT
    return matrix.to(dtype)


def slow(count: int) -> Tensor:
    """σᵢ = i^-½, a decay as slow as that of trained weights."""
    return torch.arange(1, count + 1, dtype=torch.float64) ** -0.5


def fast(count: int) -> Tensor:
    """σᵢ = 0.7^i."""
    return 0.7 ** torch.arange(count, dtype=torch.float64)


def flat_then_drop(count: int) -> Tensor:
    """One half of the values 1, the other half 1e-3."""
    return torch.where(torch.arange(count) < (count + 1) // 2, 1.0, 1e-3).double()


def noisy(count: int) -> Tensor:
    """A few large values above a flat floor."""
    return torch.where(torch.arange(count) < max(count // 8, 1), 10.0, 1.0).double()


def nearly_flat(count: int) -> Tensor:
    """A few values slightly above all others: Ritz values with small residuals need not be leading ones."""
    return torch.where(torch.arange(count) < max(count // 8, 1), 1.2, 1.0).double()


def flat(count: int) -> Tensor:
    """Values between 1 and 1.1, evenly spaced."""
    return torch.linspace(1.1, 1.0, count, dtype=torch.float64)


def zero(count: int) -> Tensor:
    """All values 0."""
    return torch.zeros(count, dtype=torch.float64)


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "slow": slow,
    "fast": fast,
    "flat_then_drop": flat_then_drop,
    "noisy": noisy,
    "nearly_flat": nearly_flat,
    "flat": flat,
    "zero": zero,
}

SHAPES = {"tall": (96, 40), "wide": (40, 96), "square": (64, 64), "row": (1, 50), "column": (50, 1)}


def assert_orthonormal(columns: Tensor) -> None:
    """Assert that columns (m, l) are orthonormal to 20 √m eps."""
    atol = 20 * columns.shape[0] ** 0.5 * torch.finfo(columns.dtype).eps
    identity = torch.eye(columns.shape[1], dtype=columns.dtype)
    torch.testing.assert_close(columns.mT @ columns, identity, rtol=0, atol=atol)


def assert_svd(u: Tensor, s: Tensor, vh: Tensor) -> None:
    """Assert the form of a singular value decomposition: orthonormal u and vh, finite descending s ≥ 0."""
    assert_orthonormal(u)
    assert_orthonormal(vh.mT)
    assert bool(s.isfinite().all())
    assert bool((s >= 0).all())
    assert bool((s[:-1] >= s[1:]).all())
