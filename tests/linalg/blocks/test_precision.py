import pytest
import torch

from lrzip.linalg.blocks.precision import attainable, compute_dtype, working
from tests.support.matrices import slow, with_spectrum


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    assert compute_dtype(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lapack_errors_are_below_the_attainable_error_but_not_far(dtype: torch.dtype) -> None:
    matrix = with_spectrum((96, 64), slow(64), dtype=dtype)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    squared = float((matrix.double() - (u.double() * s.double()) @ vh.double()).square().sum())
    floor = attainable(dtype, float(matrix.double().square().sum()))
    assert floor / 1000 <= squared <= floor


def test_a_zero_matrix_has_a_positive_floor() -> None:
    assert attainable(torch.float32, 0.0) > 0


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_working_matrices_are_tall_in_range_and_exactly_scaled(shape: tuple[int, int], factor: float) -> None:
    matrix = with_spectrum(shape, slow(20)) * factor
    columns, scale = working(matrix)
    assert columns.shape == (30, 20)
    assert (columns * scale).equal(matrix if shape == (30, 20) else matrix.mT)
    assert 1e-8 < float(columns.abs().max()) < 1e8


def test_working_matrices_of_half_precision_are_float32() -> None:
    matrix = with_spectrum((30, 20), slow(20)).bfloat16()
    assert working(matrix)[0].equal(matrix.float())
