from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from lrzip.ranks.energy import Energy
from tests.support.candidates import EPS, candidate, choose
from tests.support.matrices import slow


@given(share=st.floats(0.01, 1), count=st.integers(1, 40))
def test_the_rank_is_the_smallest_that_keeps_the_share(share: float, count: int) -> None:
    squares = slow(count).square()
    (rank,) = choose(Energy(share), [candidate(count, 50)]).ranks["x"]
    total = float(squares.sum())
    assert float(squares[:rank].sum()) >= (share - count * EPS) * total
    assert float(squares[: rank - 1].sum()) < share * total


def test_every_unfolding_keeps_the_share() -> None:
    first = candidate(4, 9, values=torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    second = candidate(4, 9, values=torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    both = replace(first, spectra=(*first.spectra, *second.spectra))
    assert choose(Energy(0.75), [both]).ranks == {"x": (3, 1)}


def test_a_share_is_settled_unless_the_error_of_the_values_could_change_the_rank() -> None:
    exact = candidate(4, 9, values=torch.ones(4, dtype=torch.float64))
    inexact = replace(exact, spectra=(replace(exact.spectra[0], slack=1e-6),))
    assert Energy(0.5).settled(exact)  # met exactly by two of four equal values
    assert not Energy(0.5).settled(inexact)
    assert Energy(0.6).settled(inexact)
