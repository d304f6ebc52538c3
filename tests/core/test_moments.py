import pytest
import torch

from lrzip.core import moments
from lrzip.core.activations import Inputs
from lrzip.core.kinds import ATTENTION, EMBEDDING, LINEAR
from lrzip.core.moments import Sums


@pytest.mark.parametrize("piece", [1, 1000, 1 << 25])
def test_moments_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(moments, "PIECE", piece)
    x, t = torch.randn(500, 12) + 3, torch.randn(500, 5)
    sums = Sums(12, 1, outputs=5)
    for part, goal in zip(torch.split(x, 100), torch.split(t, 100), strict=True):
        sums.add(Inputs(LINEAR, (part,)), (goal,))
    seen, targets = sums.moments(), sums.targets()
    exact, goal = x.double(), t.double()
    # Elements are sums of products of size 10 in float32, a hundred at most at a time.
    assert torch.allclose(seen.second[0], exact.mT @ exact / 500, rtol=1e-5)
    assert torch.allclose(seen.first[0], exact.mean(0))
    assert torch.allclose(targets.cross[0], goal.mT @ exact / 500, atol=1e-4)
    assert torch.allclose(targets.first[0], goal.mean(0))
    covariance = torch.cov(exact.mT, correction=0)
    assert torch.allclose(seen.centered.second[0], covariance, atol=1e-4)
    assert torch.allclose(targets.less(targets.first, seen).cross[0], (goal - goal.mean(0)).mT @ exact / 500, atol=1e-4)
    assert seen.count == 500


def test_a_million_small_numbers_do_not_get_lost() -> None:
    # One float32 sum of these would end at 2^24 times the number.
    sums = Sums(1, 1)
    x = torch.full((1 << 20, 1), 0.1)
    for _ in range(20):
        sums.add(Inputs(LINEAR, (x,)))
    # Eight thousand equal terms at a time: at most that many half units of rounding, 2.5e-4.
    assert float(sums.moments().second) == pytest.approx(0.01, rel=2.5e-4)


def test_groups_that_see_the_same_have_the_same_moments() -> None:
    x = torch.randn(50, 6)
    sums = Sums(6, 3)
    sums.add(Inputs(ATTENTION, (x, x, x)))
    seen = sums.moments()
    assert torch.equal(seen.second[0], seen.second[2])
    other = Sums(6, 1)
    other.add(Inputs(LINEAR, (x,)))
    assert torch.equal(other.moments().second[0], seen.second[1])


def test_of_indices_shares_are_counted() -> None:
    sums = Sums(5, 1, diagonal=True)
    sums.add(Inputs(EMBEDDING, (torch.tensor([[0, 1, 1, 4]]),)))
    assert sums.moments().second.tolist() == [[0.25, 0.5, 0, 0, 0.25]]
    assert sums.moments().centered.second.tolist() == [[0.25, 0.5, 0, 0, 0.25]]
