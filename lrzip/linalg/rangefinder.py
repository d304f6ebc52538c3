"""Orthonormal bases that capture most of the range of a matrix (Halko, Martinsson & Tropp 2011, section 4)."""

import torch
from torch import Generator, Tensor


def subspace_iteration(matrix: Tensor, size: int, *, power_iterations: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis of the approximate range of a matrix.

    Halko, Martinsson & Tropp (2011), algorithm 4.4: a Gaussian sketch, then `power_iterations` applications of A Aᵀ.
    Every application is followed by a QR factorization, without which the basis loses all directions with
    σᵢ / σ₁ below eps^(1 / (2q + 1)).

    Args:
        matrix: Real, shape (m, n).
        size: Number of basis vectors, at most min(m, n): rank plus oversampling.
        power_iterations: q ≥ 0. Two are enough for spectra that decay; slow decay wants more.
        generator: Source of the sketch, on the CPU, so that every device draws the same one.

    Returns:
        q (m, size) with orthonormal columns, in the dtype and on the device of `matrix`.
    """
    sketch = torch.randn(matrix.shape[1], size, generator=generator, dtype=torch.float32)
    basis = _orthonormalize(matrix @ sketch.to(matrix))
    for _ in range(power_iterations):
        basis = _orthonormalize(matrix.mT @ basis)
        basis = _orthonormalize(matrix @ basis)
    return basis


def _orthonormalize(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
