"""Damped Gauss-Newton steps."""

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks import gauss_newton
from lrzip.linalg.blocks.gauss_newton import _solved, damped_gauss_newton
from lrzip.linalg.blocks.rank_one_terms import squared_norms

SHAPE, RANK = (6, 5, 3, 4), 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def factors(seed: int = 0) -> list[Tensor]:
    return [normal(size, RANK, seed=seed + mode) for mode, size in enumerate(SHAPE)]


def dense(*found: Tensor) -> Tensor:
    return torch.einsum("ar,br,cr,dr->abcd", *found)


def test_steps_solve_the_normal_equations_of_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_newton, "_FORCING", 0.0)
    monkeypatch.setattr(gauss_newton, "_GRADIENT_STEPS", 200)
    parts = torch.autograd.functional.jacobian(dense, tuple(factors()))  # type: ignore[no-untyped-call]
    jacobian = torch.cat([part.reshape(-1, factor.numel()) for part, factor in zip(parts, factors(), strict=True)], 1)
    right = factors(seed=5)
    matrix = jacobian.mT @ jacobian + 0.1 * torch.eye(jacobian.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(matrix, torch.cat([part.flatten() for part in right]))
    found = torch.cat([part.flatten() for part in _solved(factors(), right, 0.1)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_error_decreases_and_converges_on_an_exact_sum() -> None:
    tensor = dense(*factors())
    start = [factor + 0.3 * more for factor, more in zip(factors(), factors(seed=5), strict=True)]
    energy = float(tensor.square().sum())
    found, error = damped_gauss_newton(tensor, start, steps=30, converged=0.0, limit=1e3 * energy)
    assert error < 1e-13 * energy
    torch.testing.assert_close(dense(*found), tensor, rtol=1e-4, atol=1e-5)


def test_steps_stay_within_the_limit_of_norms() -> None:
    """The sum of three terms is a limit of sums of two, which diverge."""
    one, two = (torch.eye(3, dtype=torch.float64)[:, [at]] for at in range(2))
    tensor = dense(two, one, one, one) + dense(one, two, one, one) + dense(one, one, two, one)
    start = [normal(3, 2, seed=mode + 1) for mode in range(4)]
    norms = []
    for limit in (20.0, 2000.0):
        found, _ = damped_gauss_newton(tensor, start, steps=60, converged=0.0, limit=limit)
        norms.append(float(squared_norms(found).sum()))
        assert norms[-1] <= limit
    assert norms[1] > 20
