from hypothesis import given
from hypothesis import strategies as st

from lrzip.ranks import Candidate
from tests.support.candidates import candidate, linear_layer


@given(shape=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_the_break_even_rank_is_the_largest_that_still_saves(shape: tuple[int, int]) -> None:
    m, n = shape
    found = candidate(m, n)
    rank = found.break_even_rank
    assert rank * (m + n) < m * n
    assert (rank + 1) * (m + n) >= m * n
    assert rank == 0 or found.saves((rank,))
    assert not found.saves((rank + 1,))


@given(limit=st.integers(0, 200))
def test_the_largest_rank_is_equal_along_all_unfoldings_and_within_the_limit(limit: int) -> None:
    def parameters(ranks: tuple[int, ...]) -> int:
        return 6 * ranks[0] + ranks[0] * ranks[1] + 4 * ranks[1]

    found = Candidate(linear_layer(6, 4), (6, 4), parameters)
    rank = found.largest_rank(limit)
    assert rank == 0 or parameters(found.equal(rank)) <= limit
    assert rank == 6 or parameters(found.equal(rank + 1)) > limit


def test_equal_ranks_are_limited_to_the_largest_of_each_unfolding() -> None:
    found = Candidate(linear_layer(6, 4), (6, 4), sum)
    assert [found.equal(rank) for rank in (1, 5, 9)] == [(1, 1), (5, 4), (6, 4)]
