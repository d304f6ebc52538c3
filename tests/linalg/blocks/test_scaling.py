import pytest
import torch

from lrzip.linalg.blocks.scaling import unit_scaled
from tests.support.matrices import slow, with_spectrum


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_products_have_unit_magnitude(scale: float) -> None:
    matrix = torch.tensor([[0.5, -1.0], [0.25, 0.0]]) * scale
    scaled = unit_scaled(matrix)
    dense = scaled @ torch.eye(2)
    assert 0.5 <= float(dense.abs().max()) < 1
    torch.testing.assert_close((scaled.mT @ torch.eye(2)).mT, dense, rtol=0, atol=0)
    assert scaled.restore(dense).equal(matrix)  # powers of two are exact


def test_squared_norm_is_that_of_the_scaled_matrix() -> None:
    matrix = with_spectrum((40, 30), slow(30)) * 1e30
    scaled = unit_scaled(matrix)
    expected = float((matrix.double() * scaled.before * scaled.after).square().sum())
    assert scaled.squared_norm() == pytest.approx(expected, rel=1e-12)


def test_a_zero_matrix_is_left_unchanged() -> None:
    scaled = unit_scaled(torch.zeros(3, 2))
    assert (scaled.before, scaled.after, scaled.squared_norm()) == (1.0, 1.0, 0.0)
