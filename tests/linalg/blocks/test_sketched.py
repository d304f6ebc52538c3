from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.sketched import sketched_subspace
from lrzip.linalg.blocks.subspace import Subspace
from tests.support.matrices import SPECTRA, fast, noisy, with_spectrum


def quadratic(count: int) -> Tensor:
    return torch.arange(1, count + 1).double() ** -2


def sketched(matrix: Tensor, rank: int, tolerance: float = 1e-3) -> Subspace | None:
    return sketched_subspace(matrix, rank, tolerance=tolerance, oversample=0, generator=Generator().manual_seed(0))


def excess(matrix: Tensor, found: Subspace, rank: int) -> float:
    """Return the error of the projection on the vectors relative to the optimal error, minus 1, in float64."""
    a = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT).double()
    basis = torch.linalg.qr(found.vectors[:, :rank].double()).Q
    optimum = torch.linalg.vector_norm(torch.linalg.svdvals(a)[rank:])
    return float(torch.linalg.matrix_norm(a - a @ basis @ basis.mT) / optimum) - 1


@pytest.mark.parametrize("shape", [(400, 200), (200, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spectrum", [quadratic, fast], ids=["quadratic", "fast"])
def test_vectors_meet_their_own_bound(
    spectrum: Callable[[int], Tensor], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    matrix = with_spectrum(shape, spectrum(200), dtype=dtype)
    found = sketched(matrix, 20)
    assert found is not None
    assert found.method == "randomized"
    assert 0 <= found.excess(20) <= 1e-3
    # Rounding of the vectors to float32 is not part of the bound but of the floor.
    assert excess(matrix, found, 20) <= found.excess(20) + 1e-5
    gram = found.vectors.mT @ found.vectors
    torch.testing.assert_close(gram, torch.eye(20, dtype=dtype), rtol=0, atol=1e-5)


def test_a_flat_spectrum_gives_no_proof() -> None:
    assert sketched(with_spectrum((400, 200), noisy(200)), 30) is None


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_tolerance_is_met_or_nothing_is_returned(tolerance: float) -> None:
    matrices = {name: with_spectrum((160, 120), values(120)) for name, values in SPECTRA.items()}
    results = {name: sketched(matrix, 10, tolerance) for name, matrix in matrices.items()}
    found = {name: subspace for name, subspace in results.items() if subspace}
    assert found.keys() >= {"fast", "zero"}
    for name, subspace in found.items():
        assert subspace.excess(10) <= tolerance, name


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scaling_a_matrix_scales_only_its_energy(scale: float) -> None:
    plain = with_spectrum((300, 150), quadratic(150))
    found, scaled = sketched(plain, 12), sketched(plain * scale, 12)
    assert found is not None
    assert scaled is not None
    assert scaled.energy == pytest.approx(found.energy * scale**2, rel=1e-5)
    torch.testing.assert_close(scaled.squares / scale**2, found.squares, rtol=1e-4, atol=1e-12)


def test_a_matrix_of_lower_rank_has_no_excess() -> None:
    values = torch.cat([torch.ones(5), torch.zeros(95)])
    found = sketched(with_spectrum((200, 100), values), 8)
    assert found is not None
    assert found.excess(8) == 0
    assert found.squares[:5].tolist() == pytest.approx([1.0] * 5, rel=1e-5)
