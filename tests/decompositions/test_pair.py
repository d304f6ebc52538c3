"""Products that are stored as two factors get a smaller rank, without forming the product."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.kinds import LORA
from lrzip.core.layers import FACTORIZABLE_DTYPES, Layer, Pair, TensorSpec
from lrzip.decompositions import PRODUCT, Decompositions, decomposition_of
from lrzip.linalg.svd import Solver

OUTPUTS, INPUTS, RANK = 30, 20, 8


def layer_of(scale: float = 1.0) -> Layer:
    spec = TensorSpec("x", (OUTPUTS + INPUTS, RANK), "float32", 4 * RANK * (OUTPUTS + INPUTS))
    return Layer("x", "x", LORA, spec, None, pair=Pair(OUTPUTS, scale))


def weight() -> Tensor:
    return torch.randn(OUTPUTS + INPUTS, RANK, generator=Generator().manual_seed(0))


def product(stacked: Tensor) -> Tensor:
    return stacked[:OUTPUTS].double() @ stacked[OUTPUTS:].double().mT


@pytest.mark.parametrize("name", ["svd", "tucker", "auto"])
def test_a_layer_that_is_a_product_is_resized_whatever_is_asked_for(name: str) -> None:
    layer = layer_of()
    assert Decompositions(name, Solver()).names_for(layer) == (PRODUCT,)
    assert decomposition_of("svd", Solver()).refuse(layer) == "stored as a product already"
    assert decomposition_of(PRODUCT, Solver()).refuse(replace(layer, pair=None)) == "not stored as a product"
    assert decomposition_of(PRODUCT, Solver()).max_ranks(layer) == (RANK,)
    assert layer.matrix_shape == (OUTPUTS, INPUTS)


@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0])
def test_spectra_are_those_of_the_scaled_product(scale: float) -> None:
    layer = layer_of(scale)
    (spectrum,) = decomposition_of(PRODUCT, Solver()).spectra(layer, weight())
    expected = torch.linalg.svdvals(product(weight()) * scale)[:RANK]
    torch.testing.assert_close(spectrum.values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", FACTORIZABLE_DTYPES)
@pytest.mark.parametrize("rank", [1, 3, RANK])
def test_the_error_is_the_least_for_the_rank_and_that_of_the_stored_factors(dtype: str, rank: int) -> None:
    layer = layer_of(0.5)
    decomposition = decomposition_of(PRODUCT, Solver())
    stored = getattr(torch, dtype)
    factors = decomposition.factorize(layer, weight(), (rank,), dtype=stored, generator=Generator())
    (stacked,) = factors.weights
    assert tuple(stacked.shape) == decomposition.blueprint(layer, (rank,)).shape  # type: ignore[union-attr]
    assert stacked.dtype == stored
    norm = torch.linalg.vector_norm(product(weight()))
    assert factors.error == pytest.approx(float(torch.dist(product(weight()), product(stacked)) / norm), abs=1e-14)
    least = float(torch.linalg.svdvals(product(weight()))[rank:].square().sum().sqrt() / norm)
    assert least - 1e-12 <= factors.error <= least + 16 * torch.finfo(stored).eps
    columns = [part.double().square().sum(0) for part in (stacked[:OUTPUTS], stacked[OUTPUTS:])]
    torch.testing.assert_close(*columns, rtol=20 * torch.finfo(stored).eps, atol=0)  # the factors are balanced
