"""Fixed precision, from the rule to the factors."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import sqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lrzip
from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions.depthwise_separable import DepthwiseSeparable
from lrzip.decompositions.svd import SVD
from lrzip.decompositions.tucker import Tucker
from lrzip.linalg.svd import Solver
from lrzip.pipeline.survey import candidate_of
from lrzip.ranks.error import FROBENIUS, SPECTRAL, Error
from tests.support.candidates import EPS, candidate, choose
from tests.support.matrices import slow
from tests.support.networks import Net, seeded

CONVOLUTION = (12, 10, 3, 3)


def convolution(shape: tuple[int, ...], groups: int = 1) -> tuple[Layer, Tensor]:
    """Return a convolution with channels of decreasing norms."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight *= 0.7 ** torch.arange(shape[0])[:, None, None, None] * 0.8 ** torch.arange(shape[1])[:, None, None]
    spec = TensorSpec("x.weight", shape, "float64", 8 * weight.numel())
    return Layer("x", "x", CONVOLUTIONS[2], spec, None, groups=groups), weight


@given(error=st.floats(1e-3, 0.99), count=st.integers(1, 40), norm=st.sampled_from([FROBENIUS, SPECTRAL]))
def test_the_rank_is_the_smallest_within_the_bound(error: float, count: int, norm: str) -> None:
    values = slow(count)
    (rank,) = choose(Error(error, norm), [candidate(count, 50)]).ranks["x"]
    size = torch.linalg.vector_norm if norm == FROBENIUS else lambda part: part.amax() if len(part) else torch.zeros(())
    assert float(size(values[rank:])) <= error * float(size(values)) * (1 + 1e-9)
    assert rank == 1 or float(size(values[rank - 1 :])) > error * float(size(values)) * (1 - 1e-9)


def test_an_error_that_is_met_exactly_counts_as_met() -> None:
    flat = candidate(100, 100, values=torch.full((100,), 0.3, dtype=torch.float64))
    for kept in (1, 19, 36, 51, 96):
        assert choose(Error(sqrt(1 - kept / 100)), [flat]).ranks == {"x": (kept,)}
    assert choose(Error(0.5, SPECTRAL), [flat]).ranks == {"x": (100,)}


@pytest.mark.parametrize("exponent", [3, 6, 9, 12])
def test_small_errors_are_not_lost_in_rounding(exponent: int) -> None:
    values = 10.0 ** -torch.arange(16, dtype=torch.float64)
    assert choose(Error(2 * 10.0**-exponent), [candidate(16, 16, values=values)]).ranks == {"x": (exponent,)}


@pytest.mark.parametrize("norm", [FROBENIUS, SPECTRAL])
def test_a_zero_matrix_takes_rank_one(norm: str) -> None:
    assert choose(Error(0.1, norm), [candidate(4, 9, values=torch.zeros(4, dtype=torch.float64))]).ranks == {"x": (1,)}


@pytest.mark.parametrize("norm", [FROBENIUS, SPECTRAL])
@pytest.mark.parametrize("error", [0.05, 0.2, 0.5, 0.9])
def test_the_whole_layer_keeps_to_the_bound_with_several_unfoldings(norm: str, error: float) -> None:
    layer, weight = convolution(CONVOLUTION)
    tucker = Tucker(Solver())
    found = candidate_of(layer, "tucker", tucker, tucker.spectra(layer, weight))
    ranks = choose(Error(error, norm), [found]).ranks["x"]
    factors = tucker.factorize(layer, weight, ranks, dtype=torch.float64, generator=torch.Generator())
    missed, order = weight - factors.dense(layer.stage), None if norm == FROBENIUS else 2
    sizes = [torch.linalg.norm(part.flatten(1), ord=order) for part in (missed, weight)]
    assert sizes[0] <= error * sizes[1]


def test_ranks_of_several_unfoldings_have_the_fewest_parameters_that_the_bound_allows() -> None:
    layer, weight = convolution(CONVOLUTION)
    tucker = Tucker(Solver())
    spectra = tucker.spectra(layer, weight)
    found = candidate_of(layer, "tucker", tucker, spectra)
    every = product(*(range(1, most + 1) for most in found.max_ranks))
    outer, inner = spectra
    allowed = [
        found.parameters((r, s)) for r, s in every if outer.tail(r) ** 2 + inner.tail(s) ** 2 <= 0.09 * outer.total
    ]
    assert found.parameters(choose(Error(0.3), [found]).ranks["x"]) == min(allowed)


@pytest.mark.parametrize("norm", [FROBENIUS, SPECTRAL])
def test_the_block_diagonal_matrix_of_groups_keeps_to_the_bound_and_no_smaller_rank_does(norm: str) -> None:
    layer, weight = convolution((12, 5, 3, 3), groups=3)
    svd = SVD(Solver("exact"))
    (rank,) = choose(Error(0.3, norm), [candidate_of(layer, "svd", svd, svd.spectra(layer, weight))]).ranks["x"]

    def share(rank: int) -> float:
        made = svd.factorize(layer, weight, (rank,), dtype=torch.float64, generator=torch.Generator())
        missed, dense = (part.flatten(1).chunk(3) for part in (weight - made.dense(layer.stage), weight))
        return combined(missed) / combined(dense)

    def combined(blocks: Sequence[Tensor]) -> float:
        """Return the norm of the block-diagonal matrix."""
        if norm == FROBENIUS:
            return float(torch.cat(list(blocks)).norm())
        return max(float(torch.linalg.matrix_norm(block, ord=2)) for block in blocks)

    assert share(rank) <= 0.3 + 1e-9
    assert rank == 1 or share(rank - 1) > 0.3


def test_operator_norms_of_depthwise_separable_layers_are_those_of_the_channels() -> None:
    layer, weight = convolution((12, 5, 3, 3))
    matrices = weight.flatten(2).transpose(0, 1)
    norms = torch.linalg.svdvals(matrices).amax(0)
    (found,) = DepthwiseSeparable(Solver()).spectra(layer, weight)
    torch.testing.assert_close(found.operator_norms, norms)
    assert found.total == pytest.approx(float(weight.square().sum()))


@pytest.mark.parametrize("norm", [FROBENIUS, SPECTRAL])
def test_a_bound_is_settled_unless_the_error_of_the_values_could_change_the_rank(norm: str) -> None:
    exact = candidate(4, 9, values=torch.tensor([1.0, 0.5, 0.5, 0.1], dtype=torch.float64))
    inexact = replace(exact, spectra=(replace(exact.spectra[0], slack=1e-6),))
    met = 0.5 if norm == SPECTRAL else sqrt(0.26 / 1.51)  # met exactly by ranks 1 and 2, respectively
    assert Error(met, norm).settled(exact)
    assert not Error(met, norm).settled(inexact)
    assert not Error(1e-4, norm).settled(inexact)
    assert Error(met + 0.01, norm).settled(inexact)


def test_spectra_with_an_error_never_settle_several_unfoldings() -> None:
    one = candidate(4, 9)
    both = replace(one, spectra=(*one.spectra, Spectrum(slow(4), (4, 9), EPS, slack=1e-9)))
    assert not Error(0.5).settled(both)


@pytest.mark.parametrize("decomposition", ["svd", "tucker", "spatial", "cp", "auto"])
def test_stored_factors_keep_to_the_bound(decomposition: str, tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    report = lrzip.compress(tmp_path / "net.pt", tmp_path / "small.pt", error=0.6, decomposition=decomposition)
    assert report.results
    assert all(result.error <= 0.6 * (1 + 1e-5) for result in report.results)


def test_layers_have_bounds_of_their_own() -> None:
    layers = nn.Linear(40, 40), nn.Linear(40, 40)
    for layer in layers:
        layer.weight.data = torch.diag(0.5 ** torch.arange(40.0))
    made = lrzip.factorize(nn.Sequential(*layers), error=0.1, layers={"1": "error:spectral:0.01"})
    shapes = {name: value.shape for name, value in made.named_parameters()}
    assert (shapes["0.0.weight"], shapes["1.0.weight"]) == ((4, 40), (7, 40))


def test_stored_factors_keep_to_the_bound_on_the_operator_norm(tmp_path: Path) -> None:
    state = {f"{name}.weight": nn.Linear(60, 50).weight.detach() for name in ("a", "b")}
    state["b.weight"] = state["b.weight"] @ torch.diag(0.8 ** torch.arange(60.0))
    torch.save(state, tmp_path / "net.pt")
    lrzip.compress(tmp_path / "net.pt", tmp_path / "small.pt", error="spectral:0.75")
    made = torch.load(tmp_path / "small.pt", weights_only=True)
    assert {"a.0.weight", "b.0.weight"} <= made.keys()
    for name in ("a", "b"):
        weight = state[f"{name}.weight"].double()
        missed = weight - made[f"{name}.1.weight"].double() @ made[f"{name}.0.weight"].double()
        assert torch.linalg.matrix_norm(missed, ord=2) <= 0.75 * torch.linalg.matrix_norm(weight, ord=2)
