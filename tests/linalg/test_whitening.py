import pytest
import torch
from torch import Tensor

from lrzip.linalg.whitening import Whitening, regress


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seen", [3, 40, 400], ids=["rank-deficient", "few", "many"])
def test_the_norm_of_whitened_weights_is_that_of_outputs(seen: int) -> None:
    weight, x = normal(20, 30), normal(30, seen, seed=1)
    moment = x @ x.mT / seen
    white = Whitening.of(moment, damping=1e-9)
    outputs = (weight @ x).square().sum() / seen
    # Damping adds its share of the mean of E[xᵢ²] times ‖W‖².
    assert float(white.apply(weight).square().sum()) == pytest.approx(float(outputs), rel=1e-6)


@pytest.mark.parametrize("seen", [3, 400])
def test_undo_is_the_inverse_of_apply(seen: int) -> None:
    weight, x = normal(20, 30), normal(30, seen, seed=1)
    white = Whitening.of(x @ x.mT / seen, damping=0.01)
    # The condition number of the root is at most √(30 / 0.01).
    assert torch.allclose(white.undo(white.apply(weight)), weight, atol=1e-10)


def test_a_diagonal_stands_for_the_diagonal_matrix() -> None:
    weight, shares = normal(20, 30), normal(30).square()
    diagonal, full = Whitening.of(shares), Whitening.of(shares.diag())
    assert torch.allclose(diagonal.apply(weight), full.apply(weight), atol=1e-12)
    assert torch.allclose(diagonal.undo(weight), full.undo(weight), atol=1e-12)


def test_inputs_that_are_all_zero_count_as_white() -> None:
    weight = normal(20, 30)
    white = Whitening.of(torch.zeros(30, 30))
    seen = white.apply(weight)
    assert torch.allclose(seen / seen.norm(), weight / weight.norm())


def test_regression_is_least_squares_with_a_prior() -> None:
    x, t, prior = normal(30, 100), normal(20, 100, seed=1), normal(20, 30, seed=2)
    moment, cross = x @ x.mT / 100, t @ x.mT / 100
    found = regress(cross, moment, prior, damping=0.3)
    added = 0.3 * float(moment.diagonal().mean())
    # Equivalent to ordinary least squares with additional rows for the prior.
    rows = torch.cat([x.mT / 10, added**0.5 * torch.eye(30, dtype=torch.float64)])
    goals = torch.cat([t.mT / 10, added**0.5 * prior.mT])
    assert torch.allclose(found, torch.linalg.lstsq(rows, goals).solution.mT, atol=1e-10)


def test_regression_without_inputs_is_the_prior() -> None:
    prior = normal(20, 30)
    assert torch.allclose(regress(torch.zeros(20, 30).double(), torch.zeros(30, 30).double(), prior), prior)


@pytest.mark.parametrize("form", ["matrix", "diagonal"])
def test_by_default_one_percent_of_the_mean_moment_is_added_in_all_directions(form: str) -> None:
    moment = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    white = Whitening.of(moment.diag() if form == "matrix" else moment)
    root = white.root.diagonal() if form == "matrix" else white.root
    torch.testing.assert_close(root.square(), moment + 0.01)


def test_by_default_regression_adds_one_percent_of_the_mean_moment() -> None:
    moment, cross = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[6.0, 5.0]]).double()
    found = regress(cross, moment, torch.zeros(1, 2))
    torch.testing.assert_close(found, torch.tensor([[6.0 / 3.02, 5.0 / 1.02]]).double())
