from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.factors import relative_error
from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.moments import Moments
from lrzip.decompositions.products import (
    InputWhitening,
    RelativeError,
    joint_error,
    projected_product,
    split_product,
    whitened_product,
)
from lrzip.decompositions.svd import SVD
from lrzip.linalg.blocks.subspace import full_subspace
from lrzip.linalg.svd import Solver, truncated_svd
from tests.support.matrices import slow, with_spectrum

SHAPES = pytest.mark.parametrize("shape", [(60, 25), (25, 60)], ids=["tall", "wide"])
RANK = 6


def moments_of(inputs: Tensor) -> Moments:
    """Return the moments of inputs (count, n) of a layer without groups."""
    exact = inputs.double()
    return Moments((exact.mT @ exact / len(exact))[None], exact.mean(0)[None], len(exact))


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_both_products_have_the_error_of_the_truncated_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, slow(25))
    least = float(slow(25)[RANK:].norm() / slow(25).norm())
    found = truncated_svd(matrix, RANK, solver=Solver("exact"), generator=Generator())
    products = [
        split_product(matrix, found, dtype),
        projected_product(matrix, full_subspace(matrix, RANK, tolerance=1e-3), RANK, dtype),
    ]
    # Each factor is rounded to eps; the errors add up to at most 2 eps ‖A‖_F, orthogonally to first order.
    eps = torch.finfo(dtype).eps
    for product in products:
        assert {product.left.dtype, product.right.dtype} == {dtype}
        assert product.error.value == pytest.approx(least, abs=2 * eps)
        assert product.error.value == pytest.approx(relative_error(matrix, product.left, product.right), rel=1e-4)
        assert product.error.squared_norm == pytest.approx(float(matrix.double().square().sum()), rel=1e-5)


@SHAPES
def test_small_errors_are_measured_on_the_product(shape: tuple[int, int]) -> None:
    matrix = with_spectrum(shape, torch.tensor([1.0] * RANK + [1e-4] * 4))
    product = projected_product(matrix, full_subspace(matrix, RANK, tolerance=1e-3), RANK, torch.float32)
    # The squared error, 1e-8 of ‖A‖², is below the digits of a difference of float32 sums.
    assert product.error.value == pytest.approx(sqrt(4e-8 / (RANK + 4e-8)), rel=1e-2)


@pytest.mark.parametrize("multiplies_rows", [False, True])
def test_whitening_turns_norms_of_outputs_into_norms_of_matrices(multiplies_rows: bool) -> None:
    matrix, inputs = torch.rand(9, 7).double(), torch.rand(400, 9 if multiplies_rows else 7).double()
    moments = moments_of(inputs)
    (whitening,) = InputWhitening.of_groups(moments, multiplies_rows=multiplies_rows)
    outputs = inputs @ (matrix if multiplies_rows else matrix.mT)
    damping = moments.damping * float(moments.second[0].diagonal().mean())
    expected = float(outputs.square().sum()) / len(inputs) + damping * float(matrix.square().sum())
    assert float(whitening.apply(matrix).square().sum()) == pytest.approx(expected, rel=1e-9)
    found = truncated_svd(whitening.apply(matrix), 3, solver=Solver("exact"), generator=Generator())
    left, right = whitening.undo(found)
    torch.testing.assert_close(whitening.apply(left @ right), (found.u * found.s) @ found.vh)


@pytest.mark.parametrize("multiplies_rows", [False, True])
def test_a_whitened_product_is_balanced_and_has_the_least_error_of_the_outputs(multiplies_rows: bool) -> None:
    matrix = with_spectrum((30, 20), slow(20))
    inputs = torch.randn(300, 30 if multiplies_rows else 20, generator=Generator().manual_seed(0)) @ torch.diag(
        torch.arange(1.0, (31 if multiplies_rows else 21))
    )
    (whitening,) = InputWhitening.of_groups(moments_of(inputs), multiplies_rows=multiplies_rows)
    outputs = whitening.apply(matrix)
    found = truncated_svd(outputs, RANK, solver=Solver("exact"), generator=Generator())
    product = whitened_product(matrix, outputs, found, whitening, torch.float32)
    values = torch.linalg.svdvals(outputs.double())
    dense = product.left.double() @ product.right.double()
    missed = whitening.apply(matrix.double() - dense)
    assert float(missed.norm()) == pytest.approx(float(values[RANK:].norm()), rel=1e-4)
    errors = [
        (inputs.double() @ (a if multiplies_rows else a.mT)).norm() for a in (matrix.double() - dense, matrix.double())
    ]
    assert product.output_error
    assert product.output_error.value == pytest.approx(float(errors[0] / errors[1]), rel=1e-4)
    assert product.excess is not None
    assert 0 <= product.excess < 1e-4
    assert product.error.value == pytest.approx(relative_error(matrix, product.left, product.right), rel=1e-6)
    grams = product.left.mT @ product.left, product.right @ product.right.mT
    torch.testing.assert_close(grams[0], grams[1], rtol=1e-4, atol=1e-4 * float(grams[0].diagonal().max()))


def test_the_joint_error_is_that_of_the_matrices_stacked() -> None:
    matrices, others = (torch.rand(2, 3, 5, 4, dtype=torch.float64)).unbind()
    errors = [
        RelativeError(float((a - b).norm() / a.norm()), float(a.square().sum()))
        for a, b in zip(matrices, others, strict=True)
    ]
    assert joint_error(errors) == pytest.approx(float((matrices - others).norm() / matrices.norm()))
    assert joint_error(errors[:1]) == errors[0].value


def test_the_joint_error_of_zeros_is_zero() -> None:
    assert joint_error([RelativeError(0.0, 0.0)] * 2) == 0


@pytest.mark.parametrize("rank", [1, 40, 68, 69])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["exact", "gram", "randomized"])
def test_the_excess_contains_the_rounding_of_the_factors(method: str, dtype: torch.dtype, rank: int) -> None:
    matrix = torch.randn(300, 70, generator=Generator().manual_seed(0)).to(dtype)
    svd = SVD(Solver(method))
    factors = svd.factorize(layer_of(matrix), matrix, (rank,), dtype=dtype, generator=Generator().manual_seed(0))
    exact = matrix.double()
    optimum = torch.linalg.vector_norm(torch.linalg.svdvals(exact)[rank:])
    error = torch.linalg.matrix_norm(exact - factors.weights[1].double() @ factors.weights[0].double())
    assert factors.excess is not None
    assert float(error / optimum) - 1 <= factors.excess + 1e-5
    if dtype == torch.bfloat16 and rank == 69:
        assert factors.excess > 5e-4, "the claim before rounding is 0"


def test_no_excess_is_claimed_where_rounding_makes_all_of_the_error() -> None:
    matrix = with_spectrum((60, 40), torch.tensor([1.0] * 5 + [0.0] * 35)).half()
    for method in ("exact", "gram"):
        found = SVD(Solver(method)).factorize(
            layer_of(matrix), matrix.float(), (5,), dtype=torch.float16, generator=Generator()
        )
        assert found.error > 1e-4
        assert found.excess is None or found.error**2 <= (1 + found.excess) ** 2 * float(
            torch.linalg.svdvals(matrix.double())[5:].square().sum() / matrix.double().square().sum()
        ) * (1 + 1e-3)


def layer_of(matrix: Tensor) -> Layer:
    dtype = str(matrix.dtype).removeprefix("torch.")
    return Layer("x", "x", LINEAR, TensorSpec("x.weight", tuple(matrix.shape), dtype, matrix.nbytes), None)
