"""Ways to replace a layer by a chain of smaller ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.core.registry import Registry
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Structure
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver

DECOMPOSITIONS = Registry(
    "decomposition", {"svd": "lrzip.decompositions.svd:SVD", "tucker": "lrzip.decompositions.tucker:Tucker"}
)
DEFAULT_DECOMPOSITION = "svd"
"""Takes every kind of layer."""


class Decomposition(Protocol):
    """One way to replace a layer; `blueprint` promises the shapes that `factorize` delivers."""

    def refuse(self, layer: Layer) -> str | None:
        """Return why it cannot replace this layer, or None."""
        ...

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the largest rank of each unfolding."""
        ...

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of each unfolding of a weight, or of what it makes of its inputs."""
        ...

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return all singular values and the leading `rank` vectors of each unfolding, or nothing if of no use."""
        ...

    def blueprint(self, layer: Layer, ranks: tuple[int, ...]) -> Structure:
        """Return the structure that replaces the layer, from shapes alone."""
        ...

    def factorize(
        self,
        layer: Layer,
        weight: Tensor,
        ranks: tuple[int, ...],
        *,
        dtype: torch.dtype,
        generator: Generator,
        subspaces: Sequence[Subspace] = (),
        moments: Moments | None = None,
    ) -> Factors:
        """Return the chain, stored in `dtype` on the CPU, from subspaces of the same weight where there are some.

        It is nearest to the weight, or in what it makes of inputs where their moments are given.
        """
        ...


@dataclass(frozen=True)
class Decompositions:
    """The decompositions of all layers: the one of a name for those that it takes, the default one for the rest.

    Attributes:
        name: Registered name.
        solver: How factors are computed.
    """

    name: str
    solver: Solver

    def name_for(self, layer: Layer) -> str:
        """Return the name of the decomposition that replaces a layer."""
        takes = self.name != DEFAULT_DECOMPOSITION and decomposition_of(self.name, self.solver).refuse(layer) is None
        return self.name if takes else DEFAULT_DECOMPOSITION

    def of(self, layer: Layer) -> Decomposition:
        """Return the decomposition that replaces a layer."""
        return decomposition_of(self.name_for(layer), self.solver)


def decomposition_of(name: str, solver: Solver) -> Decomposition:
    """Return a registered decomposition that computes with a solver."""
    made: Decomposition = DECOMPOSITIONS[name](solver)
    return made
