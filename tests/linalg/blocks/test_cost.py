import pytest

from lrzip.linalg.blocks.cost import prefers_gram, prefers_partial, rates

DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda"])


@DEVICES
def test_costs_grow_with_size_and_rank(device: str) -> None:
    costs = rates(device)
    assert costs.eigh(100) < costs.eigh(200)
    assert costs.lanczos(1000, 10) < costs.lanczos(1000, 100) < costs.lanczos(2000, 100)


@DEVICES
def test_partial_eigendecompositions_are_for_small_ranks_of_large_matrices(device: str) -> None:
    assert prefers_partial(4096, 64, device)
    assert not prefers_partial(4096, 3000, device)
    assert not prefers_partial(128, 16, device)


def test_other_devices_have_the_rates_of_a_cpu() -> None:
    assert rates("mps") == rates("cpu") != rates("cuda")


def test_the_gram_matrix_pays_for_many_krylov_vectors() -> None:
    """It costs n² per vector instead of 2mn, after 0.56 mn²: for square matrices once there are 0.56 n vectors."""
    decisions = [prefers_gram(2000, 2000, rank) for rank in (16, 64, 256, 512, 1000)]
    assert decisions == sorted(decisions)
    assert decisions[0] is False
    assert decisions[-1] is True


def test_the_gram_matrix_pays_sooner_for_tall_matrices() -> None:
    """With m ≫ n it is computed once, and a vector costs next to nothing: 0.28 n vectors are enough."""
    assert not prefers_gram(2000, 2000, 64)
    assert prefers_gram(20_000, 2000, 64)
    assert not prefers_gram(1_000_000, 8000, 64)


@pytest.mark.parametrize(("m", "n", "rank"), [(2000, 2000, 64), (20_000, 2000, 64), (3000, 1500, 16)])
def test_the_preference_is_that_of_the_operation_counts(m: int, n: int, rank: int) -> None:
    vectors = int(1.7 * int(1.6 * rank + (256 if rank >= 64 else 96)))  # dimensions of the Krylov space
    upper_triangle = m * n * (n + n / 8)  # multiply-adds of 36 of 64 blocks, two operations each
    with_gram, with_matrix = upper_triangle + 2 * n * n * vectors, 2 * (2 * m * n) * vectors
    assert prefers_gram(m, n, rank) == (with_gram < with_matrix)
