import pytest

from lrzip.linalg.blocks.cost import prefers_partial, rates


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_costs_grow_with_size_and_rank(device: str) -> None:
    costs = rates(device)
    assert costs.eigh(100) < costs.eigh(200)
    assert costs.lanczos(1000, 10) < costs.lanczos(1000, 100) < costs.lanczos(2000, 100)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_partial_eigendecompositions_are_for_small_ranks_of_large_matrices(device: str) -> None:
    assert prefers_partial(4096, 64, device)
    assert not prefers_partial(4096, 3000, device)
    assert not prefers_partial(128, 16, device)
