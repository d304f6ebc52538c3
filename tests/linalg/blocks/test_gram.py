import pytest
import torch
from torch import Tensor

from lrzip.linalg.blocks.gram import gram, is_finite, largest_element, product, rounding, safe_scale, squared_norm, tall
from tests.support.matrices import slow, with_spectrum

SHAPES = [(1, 1), (5, 3), (3000, 70), (2100, 200)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_is_the_product_and_exactly_symmetric(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, slow(min(shape)), dtype=dtype)
    for view in (matrix, matrix.mT.contiguous().mT):
        square = gram(view, dtype=torch.float64)
        expected = matrix.double().mT @ matrix.double()
        torch.testing.assert_close(square, expected, rtol=0, atol=1e-14)
        assert square.equal(square.mT)


def test_scaling_keeps_gram_matrices_of_extreme_matrices_in_range() -> None:
    matrix = with_spectrum((60, 40), slow(40))
    for factor in (2.0**-100, 2.0**100):
        extreme = matrix * factor
        scale = safe_scale(extreme)
        square = gram(extreme, dtype=torch.float32, scale=scale)
        assert bool(square.isfinite().all())
        torch.testing.assert_close(square.double() * (scale / factor) ** 2, gram(matrix, dtype=torch.float64))
    assert safe_scale(matrix) == safe_scale(torch.zeros(3, 3)) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_products_are_in_the_dtype_of_the_columns(dtype: torch.dtype) -> None:
    matrix = with_spectrum((2100, 30), slow(30), dtype=dtype)
    columns = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    if dtype == torch.float64:
        columns = columns.double()
    torch.testing.assert_close(product(matrix, columns), matrix.to(columns.dtype) @ columns)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(1, 9000), (9000, 1), (300, 200)], ids=str)
def test_squared_norm_has_a_relative_precision_of_1e_7(shape: tuple[int, int], factor: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * factor
    for view in (matrix, matrix.mT):
        assert squared_norm(view) == pytest.approx(float(matrix.double().square().sum()), rel=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_largest_element_is_not_finite_if_any_element_is_not(value: float) -> None:
    matrix = torch.zeros(3, 4)
    assert largest_element(matrix) == 0
    matrix[1, 2] = -5
    assert largest_element(matrix) == 5
    assert is_finite(matrix)
    matrix[2, 0] = value
    assert not largest_element(matrix) < float("inf")
    assert not is_finite(matrix)


def test_eigenvalues_of_a_gram_matrix_are_exact_to_its_rounding() -> None:
    matrix = with_spectrum((900, 120), slow(120))
    exact = torch.linalg.svdvals(matrix.double()).square()
    found = torch.linalg.eigvalsh(gram(matrix, dtype=torch.float32)).flip(0).double()
    bound = rounding(exact, torch.float32)
    assert bound / 100 <= float((found - exact).abs().max()) <= bound
    assert bound == rounding(exact[:1], torch.float32)


def test_tall_transposes_only_wide_matrices() -> None:
    def shape(matrix: Tensor) -> tuple[int, ...]:
        return tuple(tall(matrix).shape)

    assert shape(torch.zeros(2, 5)) == shape(torch.zeros(5, 2)) == (5, 2)
