from math import cos, pi, sqrt

import pytest
import torch
from torch import Generator

from lrzip.linalg.blocks.sketches import cosine_transform, gaussian

LENGTHS = [1, 2, 3, 8, 15, 64]


@pytest.mark.parametrize("n", LENGTHS)
def test_cosine_transform_equals_its_matrix(n: int) -> None:
    rows = torch.randn(5, n, dtype=torch.float64, generator=Generator().manual_seed(n))
    weights = [sqrt((1 if k == 0 else 2) / n) for k in range(n)]
    matrix = torch.tensor(
        [[weights[k] * cos(pi * (2 * j + 1) * k / (2 * n)) for k in range(n)] for j in range(n)], dtype=torch.float64
    )
    torch.testing.assert_close(cosine_transform(rows), rows @ matrix, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_cosine_transform_is_orthonormal(n: int, dtype: torch.dtype) -> None:
    matrix = cosine_transform(torch.eye(n, dtype=dtype))
    assert matrix.dtype == dtype
    identity = torch.eye(n, dtype=dtype)
    torch.testing.assert_close(matrix @ matrix.mT, identity, rtol=0, atol=10 * torch.finfo(dtype).eps)


def test_cosine_transform_spreads_a_unit_vector() -> None:
    """No element exceeds √(2/n), on which the sampling of the SRFT relies."""
    assert float(cosine_transform(torch.eye(100)).abs().max()) <= sqrt(2 / 100) * (1 + 1e-6)


def test_gaussian_is_the_same_in_both_dtypes() -> None:
    first, second = (
        gaussian(6, 4, generator=Generator().manual_seed(3), dtype=dtype, device="cpu")
        for dtype in (torch.float32, torch.float64)
    )
    assert second.dtype == torch.float64
    assert first.double().equal(second)
