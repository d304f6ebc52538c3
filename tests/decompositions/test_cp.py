"""Canonical polyadic decomposition of convolutions."""

from math import prod

import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec
from lrzip.decompositions import decomposition_of
from lrzip.linalg.svd import Solver

SHAPE = (12, 8, 3, 3)
LAYER = Layer("x", "x", CONVOLUTIONS[2], TensorSpec("x.weight", SHAPE, "float32", 4 * prod(SHAPE)), None)
CP = decomposition_of("cp", Solver())


def weight() -> Tensor:
    return torch.randn(SHAPE, generator=Generator().manual_seed(0))


def missed(rank: int) -> Tensor:
    factors = CP.factorize(LAYER, weight(), (rank,), dtype=torch.float64, generator=Generator().manual_seed(0))
    return weight().double() - factors.dense(LAYER.stage)


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_spectra_bound_both_norms_of_the_error(rank: int) -> None:
    (spectrum,) = CP.spectra(LAYER, weight())
    matrices = weight().double().flatten(1), missed(rank).flatten(1)
    dense, left = (float(torch.linalg.matrix_norm(matrix, ord=2)) for matrix in matrices)
    assert float(matrices[1].norm()) <= spectrum.tail(rank)
    assert left / dense <= float(spectrum.operator_norms[rank]) / spectrum.spectral_norm


def test_equal_weights_have_equal_factors_whatever_the_generator() -> None:
    """Generators depend on the names of layers."""
    made = [
        CP.factorize(LAYER, weight(), (8,), dtype=torch.float32, generator=Generator().manual_seed(seed))
        for seed in range(2)
    ]
    assert all(one.equal(other) for one, other in zip(made[0].weights, made[1].weights, strict=True))


@pytest.mark.parametrize("shape", [(12, 8, 3), (12, 8, 3, 3, 3), (12, 8, 1, 3), (12, 8, 3, 1), (12, 8, 1, 1)])
def test_kernels_that_do_not_extend_along_two_axes_are_refused(shape: tuple[int, ...]) -> None:
    kind = CONVOLUTIONS[len(shape) - 2]
    assert CP.refuse(Layer("x", "x", kind, TensorSpec("x.weight", shape, "float32", 4 * prod(shape)), None))
