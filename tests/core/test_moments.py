import pytest
import torch

from lrzip.core import moments
from lrzip.core.activations import Inputs
from lrzip.core.kinds import ATTENTION, EMBEDDING, LINEAR
from lrzip.core.moments import Moments, Sums


@pytest.mark.parametrize("piece", [1, 1000, 1 << 25])
def test_moments_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(moments, "PIECE", piece)
    x, t = torch.randn(500, 12) + 3, torch.randn(500, 5)
    sums = Sums(12, 1, outputs=5)
    for part, goal in zip(torch.split(x, 100), torch.split(t, 100), strict=True):
        sums.add(Inputs(LINEAR, (part,)), (goal,))
    found, targets = sums.moments(), sums.targets()
    exact, goal = x.double(), t.double()
    # Elements are float32 sums of at most a hundred products of size 10.
    assert torch.allclose(found.second[0], exact.mT @ exact / 500, rtol=1e-5)
    assert torch.allclose(found.first[0], exact.mean(0))
    assert torch.allclose(targets.cross[0], goal.mT @ exact / 500, atol=1e-4)
    assert torch.allclose(targets.first[0], goal.mean(0))
    covariance = torch.cov(exact.mT, correction=0)
    assert torch.allclose(found.centered.second[0], covariance, atol=1e-4)
    assert torch.allclose(
        targets.minus(targets.first, found).cross[0], (goal - goal.mean(0)).mT @ exact / 500, atol=1e-4
    )
    assert found.count == 500


def test_sums_of_millions_of_small_numbers_are_precise() -> None:
    # A single float32 sum would stop growing at 2^24 times the number.
    sums = Sums(1, 1)
    x = torch.full((1 << 20, 1), 0.1)
    for _ in range(20):
        sums.add(Inputs(LINEAR, (x,)))
    # Sums of eight thousand equal terms have at most as many rounding errors of half a unit, 2.5e-4.
    assert float(sums.moments().second) == pytest.approx(0.01, rel=2.5e-4)


def test_groups_with_the_same_inputs_have_the_same_moments() -> None:
    x = torch.randn(50, 6)
    sums = Sums(6, 3)
    sums.add(Inputs(ATTENTION, (x, x, x)))
    found = sums.moments()
    assert torch.equal(found.second[0], found.second[2])
    other = Sums(6, 1)
    other.add(Inputs(LINEAR, (x,)))
    assert torch.equal(other.moments().second[0], found.second[1])


def test_moments_of_indices_are_their_relative_frequencies() -> None:
    sums = Sums(5, 1, diagonal=True)
    sums.add(Inputs(EMBEDDING, (torch.tensor([[0, 1, 1, 4]]),)))
    assert sums.moments().second.tolist() == [[0.25, 0.5, 0, 0, 0.25]]
    assert sums.moments().centered.second.tolist() == [[0.25, 0.5, 0, 0, 0.25]]


def test_damping_adds_the_number_of_columns_over_the_number_of_inputs_to_one_percent() -> None:
    def damping(columns: int, count: int) -> float:
        return Moments(torch.eye(columns)[None], torch.zeros(1, columns), count).damping

    assert damping(12, 24) == pytest.approx(0.51)
    assert damping(12, 1200) == pytest.approx(0.02)
    assert damping(12, 0) == pytest.approx(12.01)


def test_subsampling_keeps_moments_near_those_of_all_inputs() -> None:
    x = torch.randn(200, 30, 6, generator=torch.Generator().manual_seed(0)) + 1
    dense, sampled = Sums(6, 1), Sums(6, 1)
    dense.add(Inputs(LINEAR, (x,)))
    for part in torch.split(x, 50):
        sampled.add(Inputs(LINEAR, (part,)), most=300)
    found, expected = sampled.moments(), dense.moments()
    assert found.count == 1200
    # Six standard deviations of the mean of 1200 products, each with a standard deviation of at most √6.
    assert float((found.second - expected.second).abs().max()) < 6 * 6**0.5 / 1200**0.5
