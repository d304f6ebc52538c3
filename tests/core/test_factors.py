import pytest
import torch

from lrzip.core.factors import Factors, relative_difference, relative_error
from lrzip.core.kinds import KINDS
from lrzip.core.structure import Chain, Stage


def test_the_error_of_a_product_is_that_of_the_dense_matrices() -> None:
    weight, left, right = torch.rand(3000, 12), torch.rand(3000, 5), torch.rand(5, 12)
    expected = (weight - left @ right).norm() / weight.norm()
    assert relative_error(weight, left, right) == pytest.approx(float(expected), rel=1e-5)


def test_the_error_against_a_zero_weight() -> None:
    zero = torch.zeros(4, 3)
    assert relative_error(zero, torch.zeros(4, 1), torch.zeros(1, 3)) == 0
    assert relative_error(zero, torch.ones(4, 1), torch.ones(1, 3)) == 1
    assert relative_difference(zero, torch.ones(4, 3)) == pytest.approx(12**0.5)


def test_the_dense_product_of_factors_has_the_shape_of_the_layer() -> None:
    linear, transposed = KINDS["linear"], KINDS["linear_transposed"]
    structure = Chain((Stage(linear, (2, 5)), Stage(linear, (3, 2))))
    first, second = torch.rand(2, 5), torch.rand(3, 2)
    factors = Factors(structure, (first, second), 0.0, "none")
    assert torch.allclose(factors.dense(Stage(linear, (3, 5))), second @ first)
    assert torch.allclose(factors.dense(Stage(transposed, (5, 3))), (second @ first).mT)


def test_factors_hold_no_subnormal_numbers() -> None:
    structure = Chain((Stage(KINDS["linear"], (1, 3)), Stage(KINDS["linear"], (2, 1))))
    weights = torch.tensor([[1e-40, 1.0, -1e-39]]), torch.tensor([[1e-38], [2.0]])
    found = Factors(structure, weights, 0.0, "none").weights
    assert [tensor.tolist() for tensor in found] == [[[0, 1, 0]], [[0], [2]]]
