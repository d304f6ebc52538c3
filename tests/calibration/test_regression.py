import pytest
import torch
from torch import Tensor

from lrzip.calibration.regression import Affine, Regression
from lrzip.core.moments import Moments, Targets


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(500, 6, seed=1) @ normal(6, 6, seed=2) + 3
MOMENTS = Moments((X.mT @ X / len(X))[None], X.mean(0)[None], len(X))


def targets_of(y: Tensor) -> Targets:
    return Targets((y.mT @ X / len(X))[None], y.mean(0)[None])


DENSE = Affine(normal(1, 4, 6, seed=3), normal(1, 4, seed=4))


@pytest.mark.parametrize("free", [True, False])
def test_targets_of_the_prior_give_the_prior(free: bool) -> None:
    y = X @ DENSE.matrices[0].mT + DENSE.constants[0]
    regression = Regression(MOMENTS, DENSE, free)
    found = regression.completed(regression.matrices(targets_of(y)), targets_of(y))
    assert torch.allclose(found.matrices, DENSE.matrices, atol=1e-9)
    assert torch.allclose(found.constants, DENSE.constants, atol=1e-9)


@pytest.mark.parametrize("free", [True, False])
def test_the_solution_minimizes_the_regularized_error(free: bool) -> None:
    """No change of the weight, with the constants that go with it, lowers E‖t − Wx − c‖² + λ‖W − W₀‖²."""
    y = normal(500, 4, seed=5)
    regression = Regression(MOMENTS, DENSE, free)
    weights = regression.matrices(targets_of(y))
    ridge = MOMENTS.damping * float(regression.about.second[0].diagonal().mean())

    def loss(matrices: Tensor) -> float:
        found = regression.completed(matrices, targets_of(y))
        error = (y - X @ found.matrices[0].mT - found.constants[0]).square().sum() / len(X)
        return float(error + ridge * (matrices - DENSE.matrices).square().sum())

    least = loss(weights)
    for seed in range(5):
        # A step of norm h raises a quadratic function by at least λh² above its minimum.
        step = normal(1, 4, 6, seed=seed)
        step = 1e-3 * step / step.norm()
        assert loss(weights + step) >= least + 0.99 * ridge * 1e-6


def test_constants_that_are_not_free_are_kept() -> None:
    y = normal(500, 4, seed=5)
    regression = Regression(MOMENTS, DENSE, free=False)
    assert torch.equal(regression.completed(DENSE.matrices, targets_of(y)).constants, DENSE.constants)


def test_free_constants_make_the_mean_right() -> None:
    y = normal(500, 4, seed=5) + 7
    found = Regression(MOMENTS, DENSE, free=True).completed(normal(1, 4, 6, seed=6), targets_of(y))
    assert torch.allclose((X @ found.matrices[0].mT + found.constants[0]).mean(0), y.mean(0))


def test_maps_are_composed() -> None:
    scale, shift = normal(1, 4, seed=7), normal(1, 4, seed=8)
    found = DENSE.then(scale, shift)
    expected = (X @ DENSE.matrices[0].mT + DENSE.constants[0]) * scale[0] + shift[0]
    assert torch.allclose(X @ found.matrices[0].mT + found.constants[0], expected)
