"""Fits of the output of a ReLU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.regression import Affine
from lrzip.calibration.response import nearest, refine
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.moments import Targets


def loss(goal: Tensor, output: Tensor, z: Tensor, penalty: float) -> Tensor:
    return (goal.relu() - z.relu()).square() + penalty * (z - output).square()


@pytest.mark.parametrize("penalty", [0.01, 0.3, 1.0, 5.0])
def test_the_nearest_value_is_the_minimizer(penalty: float) -> None:
    goal, output = torch.meshgrid(torch.linspace(-2, 2, 21), torch.linspace(-2, 2, 23), indexing="ij")
    grid = torch.linspace(-3, 3, 6001).double()
    goal, output = goal.double(), output.double()
    found = loss(goal, output, nearest(goal, output, penalty), penalty)
    least = loss(goal[..., None], output[..., None], grid, penalty).amin(-1)
    # Beside its minimum at distance h, at most half a step, either branch of the loss has grown by at most (1 + λ) h².
    assert (found <= least + 1e-12).all()
    assert (least <= found + (1 + penalty) * 0.0005**2 + 1e-12).all()


ROWS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
GOAL = Affine(torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).double(), torch.zeros(1, 4).double())


def pieces() -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs, and the outputs of `GOAL`, in two pieces."""
    for rows in ROWS.chunk(2):
        yield rows, rows @ GOAL.matrices[0].float().mT


def scaled(factor: float) -> Affine:
    """Return the goal scaled, whose error before and after the ReLU grows with |factor − 1|."""
    return Affine(GOAL.matrices * factor, GOAL.constants)


@pytest.mark.parametrize(
    ("factors", "best"),
    [((2.0, 3.0, 1.1, 4.0), 2), ((2.0, 3.0, 4.0, 1.1), 3), ((2.0, 1.1, 3.0, 4.0), 1), ((1.1, 2.0, 3.0, 4.0), 0)],
)
def test_the_best_iterate_is_returned_wherever_it_comes(factors: tuple[float, ...], best: int) -> None:
    iterates = [scaled(factor) for factor in factors]
    remaining = iter(iterates[1:])
    assert refine(iterates[0], lambda _: next(remaining), pieces) is iterates[best]
    assert next(remaining, None) is None


def test_targets_of_an_exact_start_are_its_outputs() -> None:
    seen: list[Targets] = []

    def solve(targets: Targets) -> Affine:
        seen.append(targets)
        return scaled(2.0)

    start = scaled(1.0)
    assert refine(start, solve, pieces) is start
    outputs = ROWS.double() @ GOAL.matrices[0].mT
    assert torch.allclose(seen[0].first[0], outputs.mean(0), atol=1e-6)
    assert torch.allclose(seen[0].cross[0], outputs.mT @ ROWS.double() / 200, atol=1e-5)


def rectified(norm: bool, convolution: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer: nn.Module = nn.Conv2d(4, 24, 3, bias=not norm) if convolution else nn.Linear(36, 24, bias=not norm)
        norms = [nn.BatchNorm2d(24) if convolution else nn.BatchNorm1d(24)] if norm else []
        for each in norms:
            assert each.running_mean is not None
            nn.init.normal_(each.weight)  # also negative
            nn.init.normal_(each.bias)
            nn.init.normal_(each.running_mean)
        return nn.Sequential(layer, *norms, nn.ReLU(inplace=norm)).eval()


def settings(corrections: str) -> CalibrationSettings:
    return CalibrationSettings(corrections=Corrections.parse(corrections), batch_size=64)


@torch.no_grad()
def error(model: nn.Module, x: Tensor, corrections: str, rank: int = 4) -> float:
    expected = model(x.clone())
    small = lrzip.factorize(model, rank=rank, calibrate=x, calibration=settings(corrections))
    return float((small(x.clone()) - expected).square().mean())


@pytest.mark.parametrize("others", ["sequential", "sequential,bias"])
@pytest.mark.parametrize(("norm", "convolution"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_output_of_the_relu_comes_closer(norm: bool, convolution: bool, others: str) -> None:
    model = rectified(norm, convolution)
    x = torch.rand(256, *((4, 6, 6) if convolution else (36,)), generator=torch.Generator().manual_seed(1)) + 0.2
    # One layer alone, so that the fitted error is the measured one.
    assert error(model, x, f"{others},response") < 0.98 * error(model, x, others)


class Residual(nn.Module):
    """Two layers; the output of the second is added to that of the first before another ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first(x))
        return torch.relu_(self.second(inner) + inner)


def test_a_branch_that_is_added_before_the_relu_counts() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().eval()
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(1))
    plain = CalibrationSettings(corrections=Corrections.parse("sequential,bias,residual"), batch_size=64)
    better = CalibrationSettings(corrections=Corrections.parse("sequential,bias,residual,response"), batch_size=64)
    errors = []
    with torch.no_grad():
        for how in (plain, better):
            small = lrzip.factorize(model, rank=3, only=["second"], calibrate=x[:256], calibration=how)
            errors.append(float((small(x[:256]) - model(x[:256])).square().mean()))
    assert errors[1] < 0.98 * errors[0]


def test_without_a_relu_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)).eval()
    x = torch.randn(64, 20)
    assert error(model, x, "sequential,bias") == error(model, x, "sequential,bias,response")


def test_at_full_rank_the_outputs_are_those_of_the_dense_network() -> None:
    model = rectified(norm=True, convolution=False)
    x = torch.rand(256, 36, generator=torch.Generator().manual_seed(1))
    assert error(model, x, "sequential,bias,response", rank=14) > 1e-4
    small = lrzip.factorize(model, energy=1.0, calibrate=x, calibration=settings("sequential,bias,refit,response"))
    with torch.no_grad():
        # The layer stays dense and is regressed on its own outputs, solved in float64 and rounded to float32.
        assert float((small(x.clone()) - model(x.clone())).abs().max()) < 1e-4
