import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.orthogonal import cholesky_orthonormalize, ensure_orthogonal, orthonormalize
from tests.support.matrices import assert_orthonormal, with_spectrum

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def gaussian(m: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(m, n, dtype=dtype, generator=Generator().manual_seed(seed))


def assert_same_span(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first @ first.mT, second @ second.mT, rtol=0, atol=1e3 * torch.finfo(first.dtype).eps)


@DTYPES
def test_dependent_columns_get_an_orthonormal_basis(dtype: torch.dtype) -> None:
    columns = gaussian(50, 4, dtype) @ gaussian(4, 9, dtype, seed=1)
    basis = orthonormalize(columns)
    assert_orthonormal(basis)
    torch.testing.assert_close(basis @ (basis.mT @ columns), columns, rtol=0, atol=1e3 * torch.finfo(dtype).eps)


@DTYPES
def test_cholesky_qr_twice_is_orthonormal_and_keeps_the_span(dtype: torch.dtype) -> None:
    columns = with_spectrum((60, 10), torch.logspace(0, -2, 10), dtype=dtype)
    basis = cholesky_orthonormalize(columns)
    assert basis is not None
    assert_orthonormal(basis)
    assert_same_span(basis, orthonormalize(columns))


@DTYPES
def test_cholesky_qr_refuses_nearly_dependent_columns(dtype: torch.dtype) -> None:
    beyond = torch.finfo(dtype).eps ** 0.5 / 10
    values = torch.tensor([1.0, 1.0, beyond])
    assert cholesky_orthonormalize(with_spectrum((60, 3), values, dtype=dtype)) is None
    assert cholesky_orthonormalize(torch.zeros(60, 3, dtype=dtype)) is None


@DTYPES
def test_an_orthogonal_basis_is_returned_unchanged(dtype: torch.dtype) -> None:
    both = orthonormalize(gaussian(60, 12, dtype))
    known, basis = both[:, :8], both[:, 8:]
    assert ensure_orthogonal(known, gaussian(60, 4, dtype, seed=1), basis) is basis


@pytest.mark.parametrize("given", ["none", "overlapping"])
@DTYPES
def test_columns_that_add_nothing_are_replaced_by_orthogonal_ones(given: str, dtype: torch.dtype) -> None:
    known = orthonormalize(gaussian(60, 8, dtype))
    fresh = gaussian(60, 2, dtype, seed=1)
    columns = torch.cat([fresh, known[:, :2]], dim=1)
    found = ensure_orthogonal(known, columns, None if given == "none" else orthonormalize(columns))
    assert_orthonormal(torch.cat([known, found], dim=1))
    rest = fresh - known @ (known.mT @ fresh)
    torch.testing.assert_close(found @ (found.mT @ rest), rest, rtol=0, atol=1e3 * torch.finfo(dtype).eps)


def test_an_overlap_just_above_rounding_is_corrected() -> None:
    known = orthonormalize(gaussian(64, 8, torch.float64))
    tilted = orthonormalize(gaussian(64, 3, torch.float64, seed=1) + known[:, :3])
    found = ensure_orthogonal(known, tilted, tilted)
    assert float((known.mT @ found).abs().max()) < 1e-14
