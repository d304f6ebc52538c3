"""Factors that minimize the error of outputs, for all decompositions of a convolution."""

from math import prod, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.moments import Moments
from lrzip.decompositions import DECOMPOSITIONS, decomposition_of
from lrzip.decompositions.outputs import damped_moment, fit_outputs, output_energy
from lrzip.linalg.svd import Solver

SHAPE = (10, 6, 3, 3)
LAYER = Layer("x", "x", CONVOLUTIONS[2], TensorSpec("x.weight", SHAPE, "float32", 4 * prod(SHAPE)), None)
TAKING = [name for name in DECOMPOSITIONS if decomposition_of(name, Solver("exact")).refuse(LAYER) is None]
NAMES = pytest.mark.parametrize("name", TAKING)
INPUTS = prod(SHAPE[1:])


def weight() -> Tensor:
    return torch.randn(SHAPE, generator=Generator().manual_seed(0))


def inputs() -> Tensor:
    """Return correlated inputs (n, in · kernel) whose directions differ in scale by up to 100."""
    generator = Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(INPUTS, INPUTS, dtype=torch.float64, generator=generator)).Q
    scales = torch.logspace(0, -2, INPUTS, dtype=torch.float64)
    x: Tensor = (torch.randn(4000, INPUTS, dtype=torch.float64, generator=generator) * scales) @ basis
    return x


def moments() -> Moments:
    x = inputs()
    return Moments((x.mT @ x / len(x))[None], torch.zeros(1, INPUTS, dtype=torch.float64), len(x))


def factorize(name: str, share: float, known: Moments | None) -> Factors:
    decomposition = decomposition_of(name, Solver("exact"))
    ranks = tuple(max(round(share * rank), 1) for rank in decomposition.max_ranks(LAYER))
    with torch.no_grad():  # as in a calibration
        return decomposition.factorize(
            LAYER, weight(), ranks, dtype=torch.float32, generator=Generator().manual_seed(0), moments=known
        )


def error_of_outputs(factors: Factors) -> float:
    missed = weight().double() - factors.dense(LAYER.stage).double()
    return sqrt(output_energy(missed, damped_moment(moments())) / output_energy(weight(), damped_moment(moments())))


@NAMES
@pytest.mark.parametrize("share", [0.15, 0.3, 0.45])
def test_the_error_of_outputs_is_less_than_that_of_factors_of_the_weight(name: str, share: float) -> None:
    fitted, plain = factorize(name, share, moments()), factorize(name, share, None)
    assert error_of_outputs(fitted) < 0.95 * error_of_outputs(plain)
    assert fitted.error >= plain.error * (1 - 1e-6)


@NAMES
def test_full_ranks_reproduce_the_outputs(name: str) -> None:
    # Rounding to float32 is amplified by at most the ratio of the scales of the inputs, 100.
    assert error_of_outputs(factorize(name, 1.0, moments())) < 100 * 20 * torch.finfo(torch.float32).eps


@NAMES
def test_spectra_of_outputs_have_their_energy(name: str) -> None:
    for spectrum in decomposition_of(name, Solver("exact")).spectra(LAYER, weight(), moments()):
        assert spectrum.total == pytest.approx(output_energy(weight(), damped_moment(moments())), rel=1e-4)
        assert (spectrum.values.diff() <= 0).all()


def test_only_free_weights_change_and_no_sweep_increases_the_error() -> None:
    decomposition = decomposition_of("spatial-vertical", Solver("exact"))
    structure, second = decomposition.blueprint(LAYER, (3,)), damped_moment(moments())
    start = factorize("spatial-vertical", 3 / 18, None).weights
    fixed = fit_outputs(structure, start, weight(), LAYER.stage, second, free=(1,))
    assert fixed[0].equal(start[0].double())
    both = fit_outputs(structure, start, weight(), LAYER.stage, second)

    def missed(weights: list[Tensor]) -> float:
        dense = Factors(structure, tuple(weights), 0.0, "").dense(LAYER.stage)
        return output_energy(weight().double() - dense, second)

    assert missed(both) < missed(fixed) < missed([factor.double() for factor in start])
