from hypothesis import given
from hypothesis import strategies as st

from lrzip.ranks import Candidate
from lrzip.ranks.ratio import Ratio
from tests.support.candidates import candidate, choose, linear_layer


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), ratio=st.floats(1.01, 30))
def test_the_rank_is_the_largest_with_a_share_of_the_parameters(shape: tuple[int, int], ratio: float) -> None:
    m, n = shape
    (rank,) = choose(Ratio(ratio), [candidate(m, n)]).ranks.get("x", (0,))
    assert rank * (m + n) <= m * n / ratio
    assert rank == min(m, n) or (rank + 1) * (m + n) > int(m * n / ratio)


def test_a_layer_whose_factors_of_rank_one_are_too_large_has_no_rank() -> None:
    assert choose(Ratio(4), [candidate(3, 3, "small"), candidate(40, 40, "large")]).ranks == {"large": (5,)}


def test_no_singular_values_are_read() -> None:
    assert not Ratio(2).needs_spectra
    assert Ratio(2).settled(Candidate(linear_layer(6, 4), (4,), sum))
