from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.decompositions import DECOMPOSITIONS
from tests.support.calibration import images, relative_error, resnet, settings_of

NAMES = pytest.mark.parametrize("name", DECOMPOSITIONS)
MEAN = torch.rand(256, 20, generator=torch.Generator().manual_seed(0)) + 1


@NAMES
def test_at_full_rank_nothing_changes(name: str) -> None:
    x = images()
    model = resnet(x)
    options: Any = {"decomposition": name, "energy": 1.0}
    small = lrzip.factorize(model, **options, calibrate=x, calibration=settings_of("bias,sequential,residual,refit"))
    # Dense layers are refitted to their own outputs; float64 solutions, rounded to float32.
    assert relative_error(model, small, x) < 1e-4


@NAMES
def test_each_correction_brings_outputs_closer(name: str) -> None:
    x = images(48, 12)
    model = resnet(x)
    # Layers that are kept dense can be refitted.
    options: Any = {"decomposition": name, "ratio": 3, "layers": {"layer2.*": "keep"}}
    errors = [relative_error(model, lrzip.factorize(model, **options), x)]
    for names in ("none", "bias,sequential", "bias,sequential,residual", "bias,sequential,residual,refit"):
        small = lrzip.factorize(model, **options, calibrate=x, calibration=settings_of(names))
        errors.append(relative_error(model, small, x))
    # Without a closed form, alternating least squares stops within a percent of the error.
    assert all(after < 1.01 * before for before, after in pairwise(errors)), errors
    assert errors[-1] < errors[1] < errors[0], errors
    assert len(errors) == 5


@torch.no_grad()
def test_means_are_kept_by_biases() -> None:
    """The mean of the outputs of a linear network is right if that of each layer is."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20), nn.Linear(20, 8)).eval()
    for corrections in ("bias", "bias,sequential"):
        small = lrzip.factorize(model, rank=3, calibrate=MEAN, calibration=settings_of(corrections))
        assert torch.allclose(small(MEAN).mean(0), model(MEAN).mean(0), atol=1e-5)
    without = lrzip.factorize(model, rank=3, calibrate=MEAN, calibration=settings_of("none"))
    assert not torch.allclose(without(MEAN).mean(0), model(MEAN).mean(0), atol=1e-5)


class SharedBias(nn.Module):
    """Two layers with one bias, each before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 16), nn.Linear(20, 16)
        self.second.bias = self.first.bias
        self.norms = nn.ModuleList([nn.BatchNorm1d(16), nn.BatchNorm1d(16)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norms[0](self.first(x)), self.norms[1](self.second(x))], 1)


@torch.no_grad()
@pytest.mark.parametrize("corrections", ["bias", "bias,sequential"])
def test_means_are_kept_by_running_means_where_a_bias_is_shared(corrections: str) -> None:
    """A shared bias cannot be changed for one layer alone, so that it stays, and counts in the running mean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SharedBias().eval()
    nn.init.normal_(model.first.bias, mean=3)
    small = lrzip.factorize(model, rank=3, calibrate=MEAN, calibration=settings_of(corrections))
    assert torch.equal(small.get_parameter("first.1.bias"), model.first.bias)
    assert not torch.equal(small.get_buffer("norms.0.running_mean"), model.get_buffer("norms.0.running_mean"))
    # Of outputs near 4, in float32.
    assert torch.allclose(small(MEAN).mean(0), model(MEAN).mean(0), atol=1e-5)


@torch.no_grad()
def test_means_are_kept_by_running_means_where_there_is_no_bias() -> None:
    model = nn.Sequential(nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16)).eval()
    small = lrzip.factorize(model, rank=3, calibrate=MEAN, calibration=settings_of("bias"))
    assert not torch.equal(small.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))
    assert torch.allclose(small(MEAN).mean(0), model(MEAN).mean(0), atol=1e-5)


def test_a_norm_over_other_channels_is_left_unchanged() -> None:
    """A linear layer on (samples, steps, features) has its channels last, and the batch norm normalizes steps."""
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(5), nn.ReLU()).eval()
    x = torch.rand(64, 5, 12, generator=torch.Generator().manual_seed(0)) + 1
    settings = settings_of("bias,sequential,residual,refit,response")
    small = lrzip.factorize(model, rank=2, calibrate=x, calibration=settings)
    assert relative_error(model, small, x) < relative_error(model, lrzip.factorize(model, rank=2), x)
    assert torch.equal(small.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def test_a_bias_that_is_kept_counts_once() -> None:
    """Without the correction of means, a layer that stays dense is found again, although its inputs have a mean."""
    model = nn.Sequential(nn.Linear(20, 8)).eval()
    nn.init.constant_(model.get_parameter("0.bias"), 3.0)
    small = lrzip.factorize(model, energy=1.0, calibrate=MEAN, calibration=settings_of("sequential,refit"))
    with torch.no_grad():
        assert torch.allclose(small(MEAN), model(MEAN), atol=1e-4)  # outputs near 3, solved in float64, in float32


class Branches(nn.Module):
    """Two layers whose outputs are added, each of which could wait for the other, and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = self.first(x)
        total += self.second(x)
        out: Tensor = self.last(torch.relu_(total))
        return out


def test_branches_that_are_added_correct_each_other() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branches().eval()
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    alone, both = (
        lrzip.factorize(model, rank=2, only=["first", "second"], calibrate=x, calibration=settings_of(corrections))
        for corrections in ("sequential", "sequential,residual")
    )
    # Together they have rank 4 of the best approximation of their sum, in place of twice rank 2.
    assert relative_error(model, both, x) < 0.9 * relative_error(model, alone, x)


def test_skipped_layers_are_not_changed() -> None:
    x = images()
    model = resnet(x)
    settings = settings_of("bias,sequential,residual,refit")
    small = lrzip.factorize(model, ratio=2, skip=["linear"], calibrate=x, calibration=settings)
    assert torch.equal(small.get_parameter("linear.weight"), model.get_parameter("linear.weight"))
    assert not torch.equal(small.get_buffer("bn1.running_mean"), model.get_buffer("bn1.running_mean"))


class Twice(nn.Module):
    """One layer that is called twice, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.shared(torch.relu(self.shared(x)))))
        return out


def test_a_layer_that_is_called_twice_has_the_factors_of_its_own_statistics() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Twice().eval()
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    small, alone = (
        lrzip.factorize(model, rank=3, only=["shared"], calibrate=x, calibration=settings_of(corrections))
        for corrections in ("sequential,refit", "none")
    )
    for stage in (0, 1):
        name = f"shared.{stage}.weight"
        assert torch.equal(small.get_parameter(name), alone.get_parameter(name))
