"""Fitting what comes out of a ReLU."""

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.response import nearest
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import UsageError


def missed(goal: Tensor, output: Tensor, z: Tensor, penalty: float) -> Tensor:
    return (goal.relu() - z.relu()).square() + penalty * (z - output).square()


@pytest.mark.parametrize("penalty", [0.01, 0.3, 1.0, 5.0])
def test_what_is_nearest_is_the_minimum(penalty: float) -> None:
    goal, output = torch.meshgrid(torch.linspace(-2, 2, 21), torch.linspace(-2, 2, 23), indexing="ij")
    grid = torch.linspace(-3, 3, 6001).double()
    goal, output = goal.double(), output.double()
    found = missed(goal, output, nearest(goal, output, penalty), penalty)
    least = missed(goal[..., None], output[..., None], grid, penalty).amin(-1)
    # Beside its minimum at distance h, at most half a step, either branch of the loss has grown by at most (1 + λ) h².
    assert (found <= least + 1e-12).all()
    assert (least <= found + (1 + penalty) * 0.0005**2 + 1e-12).all()


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
def test_responses_come_nearer(norm: bool, convolution: bool, others: str) -> None:
    model = rectified(norm, convolution)
    x = torch.rand(256, *((4, 6, 6) if convolution else (36,)), generator=torch.Generator().manual_seed(1)) + 0.2
    # One layer: what it is measured by is what it was chosen by.
    assert error(model, x, f"{others},response") < 0.98 * error(model, x, others)


class Residual(nn.Module):
    """Two layers, the second of which is added to what the first made, before another ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first(x))
        return torch.relu_(self.second(inner) + inner)


def test_what_is_added_before_the_rectifier_counts() -> None:
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


def test_without_a_rectifier_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)).eval()
    x = torch.randn(64, 20)
    assert error(model, x, "sequential,bias") == error(model, x, "sequential,bias,response")


def test_at_full_rank_responses_are_those_of_the_dense_network() -> None:
    model = rectified(norm=True, convolution=False)
    x = torch.rand(256, 36, generator=torch.Generator().manual_seed(1))
    assert error(model, x, "sequential,bias,response", rank=14) > 1e-4
    small = lrzip.factorize(model, energy=1.0, calibrate=x, calibration=settings("sequential,bias,refit,response"))
    with torch.no_grad():
        # The layer stays whole; what is regressed is what it puts out, solved in float64 and rounded to float32.
        assert float((small(x.clone()) - model(x.clone())).abs().max()) < 1e-4


def test_a_bias_that_is_kept_counts_once() -> None:
    """Without a correction of means, a layer that stays as it was is found again, though its inputs have a mean."""
    model = nn.Sequential(nn.Linear(20, 8)).eval()
    nn.init.constant_(model.get_parameter("0.bias"), 3.0)
    x = torch.rand(256, 20, generator=torch.Generator().manual_seed(0)) + 1
    small = lrzip.factorize(model, energy=1.0, calibrate=x, calibration=settings("sequential,refit"))
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-4)  # of outputs near 3, solved in float64, in float32


def test_it_goes_with_a_sequence() -> None:
    assert str(Corrections.parse("sequential,response")) == "sequential,response"
    with pytest.raises(UsageError, match="go with `sequential`"):
        Corrections.parse("bias,response")
