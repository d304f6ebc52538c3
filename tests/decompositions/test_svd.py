from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.kinds import (
    ATTENTION,
    CONVOLUTIONS,
    EMBEDDING,
    LINEAR,
    LINEAR_TRANSPOSED,
    TRANSPOSED_CONVOLUTIONS,
    Kind,
)
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.moments import Moments
from lrzip.decompositions.svd import SVD
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver
from tests.support.matrices import slow, with_spectrum
from tests.support.moments import correlated_moments

EXACT, DEFAULT = SVD(Solver("exact")), SVD(Solver())


def layer_of(kind: Kind, weight: Tensor, groups: int = 1) -> Layer:
    return Layer("x", "x", kind, TensorSpec("x.weight", tuple(weight.shape), "float32", weight.nbytes), None, groups)


def factorize(
    layer: Layer,
    weight: Tensor,
    rank: int,
    svd: SVD = EXACT,
    moments: Moments | None = None,
    subspaces: tuple[Subspace, ...] = (),
) -> Factors:
    options = {"dtype": torch.float32, "generator": Generator().manual_seed(0)}
    return svd.factorize(layer, weight, (rank,), moments=moments, subspaces=subspaces, **options)  # type: ignore[arg-type]


def test_transposed_convolutions_in_groups_are_refused() -> None:
    weight = torch.rand(8, 4, 3)
    assert EXACT.refuse(layer_of(TRANSPOSED_CONVOLUTIONS[1], weight, 2)) == "a transposed convolution in groups"
    assert EXACT.refuse(layer_of(TRANSPOSED_CONVOLUTIONS[1], weight)) is None
    assert EXACT.refuse(layer_of(CONVOLUTIONS[1], weight, 2)) is None


def test_each_group_has_its_own_truncated_svd() -> None:
    weight = torch.randn(24, 5, 3, 3, generator=Generator().manual_seed(0))
    layer = layer_of(CONVOLUTIONS[2], weight, 3)
    values = torch.stack([torch.linalg.svdvals(group) for group in weight.double().flatten(1).chunk(3)])
    (spectrum,) = EXACT.spectra(layer, weight)
    torch.testing.assert_close(spectrum.values.double(), values.square().sum(0).sqrt(), rtol=1e-5, atol=0)
    least = sqrt(float(values[:, 4:].square().sum()) / float(values.square().sum()))
    assert factorize(layer, weight, 4).error == pytest.approx(least, rel=1e-5)


def test_subspaces_are_computed_only_where_factors_are_computed_from_them() -> None:
    weight = torch.randn(24, 12, generator=Generator().manual_seed(0))
    assert len(DEFAULT.subspaces(layer_of(LINEAR, weight), weight, 4)) == 1
    assert EXACT.subspaces(layer_of(LINEAR, weight), weight, 4) == ()
    assert DEFAULT.subspaces(layer_of(ATTENTION, weight, 3), weight, 4) == ()


@pytest.mark.parametrize("rank", [3, 6], ids=["large-enough", "too-small"])
def test_factors_from_a_subspace_have_the_least_error(rank: int) -> None:
    weight = with_spectrum((40, 24), slow(24))
    layer = layer_of(LINEAR, weight)
    subspaces = DEFAULT.subspaces(layer, weight, 3)
    least = float(slow(24)[rank:].norm() / slow(24).norm())
    found = factorize(layer, weight, rank, DEFAULT, subspaces=subspaces)
    assert found.error == pytest.approx(least, rel=DEFAULT.solver.tolerance)
    assert found.structure == DEFAULT.blueprint(layer, (rank,))


def mean_square(layer: Layer, weight: Tensor, moments: Moments) -> float:
    """Return E‖Wx‖² over all groups, without damping."""
    matrices = torch.stack(weight.double().flatten(1).chunk(layer.groups))
    matrices = matrices.mT if layer.kind.inputs_first else matrices
    second = moments.second.diag_embed() if layer.kind.is_indexed else moments.second
    return float(torch.einsum("gmn,gnk,gmk->", matrices, second, matrices))


@pytest.mark.parametrize(
    ("kind", "shape", "groups"),
    [
        (LINEAR, (18, 12), 1),
        (LINEAR_TRANSPOSED, (12, 18), 1),
        (CONVOLUTIONS[1], (18, 4, 3), 1),
        (CONVOLUTIONS[1], (18, 4, 3), 3),
        (TRANSPOSED_CONVOLUTIONS[1], (12, 6, 3), 1),
        (EMBEDDING, (12, 18), 1),
    ],
    ids=lambda value: str(value),
)
def test_moments_of_the_inputs_lower_the_error_of_the_outputs(kind: Kind, shape: tuple[int, ...], groups: int) -> None:
    weight = torch.randn(shape, generator=Generator().manual_seed(1))
    layer = layer_of(kind, weight, groups)
    moments = correlated_moments(layer.input_size, groups)
    if kind.is_indexed:
        moments = Moments(moments.second.diagonal(dim1=1, dim2=2), moments.first, moments.count)
    calibrated, plain = factorize(layer, weight, 3, moments=moments), factorize(layer, weight, 3)
    missed, total = (mean_square(layer, part, moments) for part in (weight - calibrated.dense(layer.stage), weight))
    assert calibrated.output_error == pytest.approx((missed / total) ** 0.5, rel=1e-3)
    assert missed < mean_square(layer, weight - plain.dense(layer.stage), moments)
    assert plain.output_error is None
    assert calibrated.error > plain.error, "the error of the weight is traded for that of the outputs"
