import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.kinds import CONVOLUTIONS, KINDS, TRANSPOSED_CONVOLUTIONS, Kind
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.moments import Moments
from lrzip.decompositions.tucker import Tucker
from lrzip.linalg.svd import Solver
from tests.support.moments import correlated_moments

TUCKER = Tucker(Solver())
WEIGHT = torch.randn(18, 12, 3, 2, generator=Generator().manual_seed(0))


def layer_of(shape: tuple[int, ...], kind: Kind = CONVOLUTIONS[2], groups: int = 1) -> Layer:
    return Layer("x", "x", kind, TensorSpec("x.weight", shape, "float32", 4), None, groups)


LAYER = layer_of((18, 12, 3, 2))


def factorize(weight: Tensor, ranks: tuple[int, int], moments: Moments | None = None) -> Factors:
    return TUCKER.factorize(LAYER, weight, ranks, dtype=torch.float32, generator=Generator(), moments=moments)


def mean_square(weight: Tensor, moments: Moments, *, damped: bool = False) -> float:
    """Return E‖Wx‖²."""
    damping = moments.damping * float(moments.second[0].diagonal().mean()) if damped else 0.0
    matrix = weight.double().flatten(1)
    return float(((matrix @ moments.second[0]) * matrix).sum()) + damping * float(matrix.square().sum())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layer_of((18, 12), KINDS["linear"]), "no convolution"),
        (layer_of((18, 12, 3, 3), TRANSPOSED_CONVOLUTIONS[2]), "no convolution"),
        (layer_of((18, 6, 3, 3), groups=2), "a convolution in groups"),
        (layer_of((18, 12, 1, 1)), "a convolution without a kernel"),
        (layer_of((18, 12, 1, 3)), None),
    ],
)
def test_only_convolutions_with_a_kernel_are_replaced(layer: Layer, reason: str | None) -> None:
    assert TUCKER.refuse(layer) == reason


def test_ranks_are_limited_by_both_sides_of_each_unfolding() -> None:
    assert TUCKER.max_ranks(LAYER) == (18, 12)
    assert TUCKER.max_ranks(layer_of((18, 2, 3, 1))) == (6, 2)
    assert TUCKER.max_ranks(layer_of((2, 12, 3, 1))) == (2, 6)


def test_the_spectrum_of_outputs_is_exact_along_output_channels() -> None:
    moments = correlated_moments(LAYER.input_size)
    outer, inner = TUCKER.spectra(LAYER, WEIGHT, moments)
    damping = moments.damping * float(moments.second[0].diagonal().mean())
    root = torch.linalg.cholesky(moments.second[0] + damping * torch.eye(72, dtype=torch.float64))
    expected = torch.linalg.svdvals(WEIGHT.double().flatten(1) @ root)
    torch.testing.assert_close(outer.values, expected, rtol=1e-6, atol=1e-6 * float(expected[0]))
    assert inner.frobenius_norm == pytest.approx(outer.frobenius_norm)
    assert outer.frobenius_norm**2 == pytest.approx(mean_square(WEIGHT, moments, damped=True))


def test_moments_of_the_inputs_lower_the_error_of_the_outputs() -> None:
    moments = correlated_moments(LAYER.input_size)
    calibrated, plain = factorize(WEIGHT, (6, 5), moments), factorize(WEIGHT, (6, 5))
    scale = mean_square(WEIGHT, moments)
    errors = [
        (mean_square(WEIGHT - factors.dense(LAYER.stage), moments) / scale) ** 0.5 for factors in (calibrated, plain)
    ]
    assert calibrated.output_error == pytest.approx(errors[0], rel=1e-4)
    assert errors[0] < errors[1]
    assert plain.output_error is None


def test_directions_with_negative_moments_count_as_damped() -> None:
    moments = correlated_moments(LAYER.input_size)
    values, vectors = torch.linalg.eigh(moments.second[0])
    values[0] = -2 * moments.damping * values.mean()
    indefinite = Moments(((vectors * values) @ vectors.mT)[None], moments.first, moments.count)
    gains = torch.arange(1.0, 19)
    weight = (gains.double()[:, None] * vectors[:, 0]).reshape(WEIGHT.shape)
    (outer, _) = TUCKER.spectra(LAYER, weight, indefinite)
    damping = float(moments.damping * values.mean())
    assert float(outer.values[0]) == pytest.approx(float(gains.norm()) * damping**0.5, rel=1e-6)
