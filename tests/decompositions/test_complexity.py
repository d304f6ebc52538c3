"""Numbers of parameters, which are also the multiply-accumulates per position, as the papers count them."""

from collections.abc import Callable
from math import prod

import pytest

from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.structure import parameters
from lrzip.decompositions import decomposition_of
from lrzip.linalg.svd import Solver

N, C, D = 48, 20, 3
"""Output channels, input channels and kernel size."""
COUNTS: dict[str, Callable[..., int]] = {
    "svd": lambda r: r * (D * D * C + N),  # Zhang et al. 2015, section 3.1
    "tucker": lambda r, s: C * s + D * D * s * r + r * N,  # Kim et al. 2016, equation 5
    "spatial-vertical": lambda r: D * r * (C + N),  # Tai et al. 2016, section 2.1
    "spatial-horizontal": lambda r: D * r * (C + N),
    "filter-basis": lambda r: C * r * (D * D + N),
    "depthwise-separable": lambda r: C * r * (D * D + N),  # Howard et al. 2017, equation 5, for r = 1
    "cp": lambda r: r * (C + D + D + N),  # Lebedev et al. 2015, section 3.1
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_paper(name: str) -> None:
    shape = (N, C, D, D)
    layer = Layer("x", "x", CONVOLUTIONS[2], TensorSpec("x.weight", shape, "float32", 4 * prod(shape)), None)
    decomposition = decomposition_of(name, Solver("exact"))
    for share in (0.1, 0.5, 1.0):
        ranks = tuple(max(round(share * rank), 1) for rank in decomposition.max_ranks(layer))
        assert parameters(decomposition.blueprint(layer, ranks)) == COUNTS[name](*ranks)


def test_spatial_filters_save_below_the_rank_of_the_paper() -> None:
    layer = Layer("x", "x", CONVOLUTIONS[2], TensorSpec("x.weight", (N, C, D, D), "float32", 4), None)
    most = D * N * C / (N + C)
    decomposition = decomposition_of("spatial-vertical", Solver("exact"))
    for rank in range(1, 60):
        assert (parameters(decomposition.blueprint(layer, (rank,))) < N * C * D * D) == (rank < most)
