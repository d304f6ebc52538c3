from lrzip.ranks import Candidate
from lrzip.ranks.fixed import FixedRank
from tests.support.candidates import candidate, choose, linear_layer


def test_all_layers_have_the_rank_or_their_largest() -> None:
    layers = [candidate(30, 20, "a"), candidate(3, 50, "b")]
    assert choose(FixedRank(8), layers).ranks == {"a": (8,), "b": (3,)}


def test_all_unfoldings_have_the_rank_or_their_largest() -> None:
    found = Candidate(linear_layer(6, 4), (6, 4), sum)
    assert choose(FixedRank(5), [found]).ranks == {"x": (5, 4)}


def test_no_singular_values_are_read() -> None:
    assert not FixedRank(8).needs_spectra
    assert FixedRank(8).settled(Candidate(linear_layer(6, 4), (4,), sum))
