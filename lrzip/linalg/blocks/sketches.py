"""Random and structured sketches: Gaussian matrices, identical on every device, and a fast cosine transform."""

from math import pi, sqrt

import torch
from torch import Generator, Tensor


def gaussian(
    rows: int, columns: int, *, generator: Generator, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Return a matrix of independent standard normal numbers.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        generator: Source of the numbers, on the CPU.
        dtype: Dtype of the result. The numbers are drawn in float32, so float64 computations use the same sketch.
        device: Device of the result.

    Returns:
        (rows, columns) in `dtype` on `device`.
    """
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(device=device, dtype=dtype)


def cosine_transform(rows: Tensor) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) of every row, in O(n log n) each.

    X_k = c_k Σ_j x_j cos(π (2j + 1) k / 2n) with c_0 = √(1/n) and c_k = √(2/n): an orthogonal matrix whose elements
    are at most √(2/n). It is computed by one real FFT of the even elements followed by the odd ones in reverse order
    (Makhoul 1980, 'A fast cosine transform in one and two dimensions').

    Args:
        rows: Shape (..., n), float32 or float64.

    Returns:
        Same shape, dtype and device as `rows`; every row keeps its norm.
    """
    n = rows.shape[-1]
    order = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)]).to(rows.device)
    angles = torch.arange(n // 2 + 1, dtype=torch.float64) * (-pi / (2 * n))
    twist = torch.polar(torch.ones_like(angles), angles)
    spectrum = torch.fft.rfft(rows[..., order])
    spectrum = spectrum * twist.to(spectrum)
    # The real parts are X_0 … X_{n/2}, the negated imaginary parts X_{n-1}, X_{n-2}, …
    halves = [spectrum.real, -spectrum.imag[..., 1 : (n + 1) // 2].flip(-1)]
    transformed = torch.cat(halves, dim=-1) * sqrt(2 / n)
    transformed[..., 0] *= sqrt(1 / 2)
    return transformed
