"""Decompositions: replace a layer, or a group of layers, by smaller operations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from lrzip.core.decisions import Replacement
from lrzip.core.errors import UsageError
from lrzip.core.factors import Factors, GroupFactors
from lrzip.core.globs import matches
from lrzip.core.layers import Group, Layer
from lrzip.core.moments import Moments
from lrzip.core.registry import Registry
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import Structure
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver

DECOMPOSITIONS = Registry(
    "decomposition",
    {
        "svd": "lrzip.decompositions.svd:SVD",
        "tucker": "lrzip.decompositions.tucker:Tucker",
        "spatial-vertical": "lrzip.decompositions.spatial:vertical_first",
        "spatial-horizontal": "lrzip.decompositions.spatial:horizontal_first",
        "filter-basis": "lrzip.decompositions.filter_basis:FilterBasis",
        "depthwise-separable": "lrzip.decompositions.depthwise_separable:DepthwiseSeparable",
        "cp": "lrzip.decompositions.cp:CP",
    },
)
DEFAULT_DECOMPOSITION = "svd"
"""Decomposition of the layers that the requested one refuses."""
PRODUCT = "product"
"""Decomposition of the layers that are stored as a product already; it is not chosen by users."""
_PRODUCTS = Registry("decomposition", {PRODUCT: "lrzip.decompositions.pair:PairSVD"})
AUTO = "auto"
"""Name of the family of all decompositions."""
FAMILIES: Mapping[str, tuple[str, ...]] = {"spatial": ("spatial-vertical", "spatial-horizontal"), AUTO: ()}
"""Names that stand for several decompositions, of which rank rules choose one for each layer."""


class Decomposition(Protocol):
    """A way to replace a layer. `blueprint` states the shapes of the tensors that `factorize` returns."""

    def refuse(self, layer: Layer) -> str | None:
        """Return the reason why this layer cannot be replaced, or None."""
        ...

    def max_ranks(self, layer: Layer) -> tuple[int, ...]:
        """Return the largest rank of each unfolding."""
        ...

    def spectra(self, layer: Layer, weight: Tensor, moments: Moments | None = None) -> tuple[Spectrum, ...]:
        """Return the spectrum of each unfolding of the weight, or of the outputs for inputs with given moments."""
        ...

    def subspaces(self, layer: Layer, weight: Tensor, rank: int) -> tuple[Subspace, ...]:
        """Return all singular values and the leading `rank` vectors of each unfolding, if `factorize` uses them."""
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
        """Return the factors with the least error of the weight, or of the outputs if moments of the inputs are given.

        Args:
            layer: The layer.
            weight: Its weight, on any device.
            ranks: Ranks of the unfoldings.
            dtype: Dtype of the stored factors, which are on the CPU.
            generator: Source of randomness.
            subspaces: Result of the method `subspaces` for the same weight, if it was called.
            moments: Moments of the inputs, if known.
        """
        ...


@runtime_checkable
class GroupDecomposition(Protocol):
    """A way to replace several layers together, because they share a dimension.

    `replacements` states the shapes that `factorize_group` returns. Every single
    layer is refused; a group is replaced only if a plan file names it.
    """

    def refuse(self, layer: Layer) -> str:
        """Return the reason why a single layer cannot be replaced."""
        ...

    def refuse_group(self, group: Group) -> str | None:
        """Return the reason why these layers cannot be replaced together, or None."""
        ...

    def max_group_ranks(self, group: Group) -> tuple[int, ...]:
        """Return the largest ranks of the group."""
        ...

    def replacements(self, group: Group, ranks: tuple[int, ...]) -> tuple[Replacement, ...]:
        """Return the structure of each layer and the new shapes of other tensors, from shapes alone."""
        ...

    def factorize_group(
        self,
        group: Group,
        tensors: Mapping[str, Tensor],
        ranks: tuple[int, ...],
        *,
        dtype: torch.dtype,
        generator: Generator,
    ) -> GroupFactors:
        """Return the factors of all layers, stored in `dtype` on the CPU.

        Args:
            group: The layers.
            tensors: Weights of the layers and all other tensors that get another shape, by name.
            ranks: Ranks of the group.
            dtype: Dtype of the stored factors.
            generator: Source of randomness.
        """
        ...


@dataclass(frozen=True)
class Decompositions:
    """The decompositions of all layers.

    Attributes:
        name: Name of a decomposition or of a family.
        solver: Solver of the factors.
        overrides: Names for some layers by pattern; the last match wins.
        obstacle: States why the output cannot hold a structure.
    """

    name: str
    solver: Solver
    overrides: Mapping[str, str] = field(default_factory=dict)
    obstacle: Callable[[Structure], str | None] = lambda _: None

    def names_for(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of the decompositions of a layer: the requested ones that take it, or else the default."""
        matching = [name for pattern, name in self.overrides.items() if matches(layer.name, pattern)]
        wanted = matching[-1] if matching else self.name
        taken = tuple(name for name in members(wanted) if self.refuse(name, layer) is None)
        return taken or (PRODUCT if layer.pair else DEFAULT_DECOMPOSITION,)

    def refuse(self, name: str, layer: Layer) -> str | None:
        """Return why a decomposition cannot replace a layer in the output, or None."""
        made = self.of(name)
        reason = made.refuse(layer)
        if reason is not None or isinstance(made, GroupDecomposition):
            return reason
        return self.obstacle(made.blueprint(layer, (1,) * len(made.max_ranks(layer))))

    def of(self, name: str) -> Decomposition:
        """Return a registered decomposition with the solver."""
        return decomposition_of(name, self.solver)


def members(name: str) -> tuple[str, ...]:
    """Return the registered names that a name stands for.

    Raises:
        UsageError: There is neither a decomposition nor a family of this name.
    """
    known = (*DECOMPOSITIONS, *FAMILIES)
    if name not in known:
        raise UsageError(f"`decomposition` must be one of {', '.join(known)}, got {name}.")
    return tuple(DECOMPOSITIONS) if name == AUTO else FAMILIES.get(name, (name,))


def decomposition_of(name: str, solver: Solver) -> Decomposition:
    """Return a registered decomposition with a solver."""
    made: Decomposition = (_PRODUCTS if name == PRODUCT else DECOMPOSITIONS)[name](solver)
    return made


def group_decomposition_of(name: str, solver: Solver) -> GroupDecomposition | None:
    """Return a registered decomposition of groups, or None if it replaces single layers."""
    made = decomposition_of(name, solver)
    return made if isinstance(made, GroupDecomposition) else None
