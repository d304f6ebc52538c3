from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg import gram_svd
from lrzip.linalg.blocks.subspace import Subspace, leading_subspace
from lrzip.linalg.gram_svd import find_subspace, project
from lrzip.linalg.solver import Solver, TruncatedSVD
from tests.support.matrices import SHAPES, SPECTRA, fast, flat_then_drop, slow, with_spectrum, zero


def found(matrix: Tensor, rank: int, method: str = "auto", **options: Any) -> Subspace:
    return find_subspace(matrix, rank, solver=Solver(method, **options), generator=Generator().manual_seed(0))


def error_of(matrix: Tensor, triplets: TruncatedSVD) -> float:
    product = (triplets.u.double() * triplets.s) @ triplets.vh.double()
    return float(torch.linalg.matrix_norm(matrix.double() - product))


def departure(columns: Tensor) -> float:
    """Return the largest deviation of the Gram matrix of columns from the identity."""
    return float((columns.mT @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)).abs().max())


def test_auto_chooses_the_cheapest_method() -> None:
    matrix = with_spectrum((1000, 800), slow(800))
    assert found(matrix, 20).method == "lanczos"
    assert found(matrix, 560).method == "gram"
    steep = with_spectrum((600, 512), fast(512))
    assert found(steep, 12).method == "randomized"
    assert found(steep, 12, "gram").method == "lanczos in float64"


def test_float64_replaces_float32_that_would_miss_the_tolerance() -> None:
    values = torch.cat([torch.ones(8), torch.full((24,), 1e-4)])
    matrix = with_spectrum((48, 32), values)
    subspace = found(matrix, 8, "gram")
    assert subspace.method == "gram in float64"
    optimum = float(torch.linalg.vector_norm(values[8:].double()))
    assert error_of(matrix, project(matrix, subspace, 8)) <= 1.001 * optimum


def test_float32_is_skipped_where_its_rounding_exceeds_the_tolerance_on_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a probe that captures nearly all energy, but no sketch that meets the tolerance."""
    tried: list[bool] = []

    def record(*args: Any, coarse: bool, **options: Any) -> Subspace:
        tried.append(coarse)
        return leading_subspace(*args, coarse=coarse, **options)

    monkeypatch.setattr(gram_svd, "sketched_subspace", lambda *_args, **_options: None)
    monkeypatch.setattr(gram_svd, "leading_subspace", record)
    values = torch.cat([torch.ones(32), torch.full((480,), 1e-5)])
    assert found(with_spectrum((600, 512), values), 40).method.endswith("in float64")
    assert found(with_spectrum((96, 64), slow(64)), 40).method == "gram"
    assert tried == [False, True]


def test_a_looser_tolerance_accepts_float32() -> None:
    matrix = with_spectrum((64, 40), torch.cat([torch.ones(8), torch.full((32,), 5e-3)]))
    strict, loose = (found(matrix, 8, "gram", tolerance=tolerance) for tolerance in (1e-5, 0.5))
    assert [strict.method, loose.method] == ["gram in float64", "gram"]
    assert 1e-5 < loose.excess(8) <= 0.5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("spectrum", ["slow", "fast", "flat_then_drop"])
def test_projections_have_the_singular_values_of_the_matrix(shape: tuple[int, int], spectrum: str) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values)
    rank = max(min(shape) // 4, 1)
    triplets = project(matrix, found(matrix, min(shape)), rank)
    # Rounding errors of the vectors are amplified to eps (σ₁ / σᵢ)².
    atol = 4 * torch.finfo(torch.float32).eps * float(values[0] ** 2 / values[rank - 1])
    torch.testing.assert_close(triplets.s.double(), values[:rank], rtol=0, atol=atol)
    assert departure(triplets.u) <= 1e-4
    assert departure(triplets.vh.mT) <= 1e-4


def test_vectors_of_values_that_span_many_magnitudes_are_orthonormal() -> None:
    for values in (fast(40), flat_then_drop(40), torch.logspace(0, -6, 40, dtype=torch.float64), zero(40)):
        matrix = with_spectrum((64, 40), values)
        triplets = project(matrix, found(matrix, 30), 30)
        assert departure(triplets.u) <= 2e-4
        assert departure(triplets.vh.mT) <= 2e-4


def test_projections_of_a_transposed_matrix_swap_the_bases() -> None:
    matrix = with_spectrum((40, 96), slow(40))
    wide, tall = (project(part, found(part, 7), 7) for part in (matrix, matrix.mT))
    torch.testing.assert_close(tall.s, wide.s)
    torch.testing.assert_close((tall.vh.mT * tall.s) @ tall.u.mT, (wide.u * wide.s) @ wide.vh, rtol=0, atol=1e-5)
