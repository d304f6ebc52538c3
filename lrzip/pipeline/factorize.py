"""Pass 2: read and factorize the layers of a plan, several at a time."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Generator, Tensor

from lrzip.core.decisions import Factorize
from lrzip.core.errors import LrzipError
from lrzip.core.factors import Factors, GroupFactors
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments, Statistics
from lrzip.core.plan import Plan
from lrzip.core.progress import Progress
from lrzip.decompositions import decomposition_of, group_decomposition_of
from lrzip.formats.protocols import Source
from lrzip.linalg.blocks.gram import is_finite
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import Solver
from lrzip.pipeline.parallel import map_in_order
from lrzip.pipeline.scratch import Scratch
from lrzip.pipeline.survey import memory_of, read_weight

# Dtypes that factors may have, by their range; that of float32 ends somewhat above that of bfloat16.
_RANGES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Factorizer:
    """Reads and factorizes the layers of a plan.

    Attributes:
        source: The checkpoint or network.
        solver: Solver of truncated SVDs.
        scratch: Subspaces of pass 1; None if there are none.
        device: Where to compute.
        seed: Seed of all sketches.
        statistics: Moments of the inputs of layers, by name; factors then minimize the error of outputs.
        fitted: Factors that are known already, by layer name.
    """

    source: Source
    solver: Solver
    scratch: Scratch | None
    device: str
    seed: int
    statistics: Statistics = field(default_factory=dict)
    fitted: Mapping[str, Factors] = field(default_factory=dict)

    def load(self, decision: Factorize) -> Mapping[str, Tensor]:
        """Read the tensors that a decision replaces, by name."""
        weights = {layer.weight.name: read_weight(self.source, layer, self.device) for layer in decision.group.layers}
        resized = [before.name for replacement in decision.replacements for before, _ in replacement.others]
        return weights | {name: self.source.read(name) for name in resized}

    def factorize(self, decision: Factorize, tensors: Mapping[str, Tensor]) -> tuple[GroupFactors, float]:
        """Return the factors of a decision, and the seconds they took."""
        start = perf_counter()
        layer = decision.layer
        if len(decision.replacements) > 1:
            found = self._fit_group(decision, tensors)
        elif layer.name in self.fitted:
            found = GroupFactors((self.fitted[layer.name],))
        else:
            moments = self.statistics.get(layer.name)
            found = GroupFactors((self.fit(decision, tensors[layer.weight.name], moments),))
        return found, perf_counter() - start

    def fit(self, decision: Factorize, weight: Tensor, moments: Moments | None) -> Factors:
        """Return the factors of a given weight for a layer.

        Raises:
            LrzipError: The weight or its factors are not finite.
        """
        layer = decision.layer
        self._check_weight(layer, weight)
        factors = decomposition_of(decision.decomposition, self.solver).factorize(
            layer,
            weight,
            decision.ranks,
            dtype=getattr(torch, decision.dtype),
            generator=_generator(self.seed, layer),
            subspaces=self._subspaces(decision) if moments is None else (),
            moments=moments,
        )
        self._check_error(factors.error, decision)
        return factors

    def _subspaces(self, decision: Factorize) -> tuple[Subspace, ...]:
        """Return the subspaces that pass 1 has computed for a decision, if any."""
        key = decision.decomposition, decision.layer.name
        return self.scratch.take(key, self.device) if self.scratch else ()

    def _fit_group(self, decision: Factorize, tensors: Mapping[str, Tensor]) -> GroupFactors:
        group = decision.group
        for layer in group.layers:
            self._check_weight(layer, tensors[layer.weight.name])
        decomposition = group_decomposition_of(decision.decomposition, self.solver)
        assert decomposition, "plans give groups to decompositions of groups alone"
        found = decomposition.factorize_group(
            group,
            tensors,
            decision.ranks,
            dtype=getattr(torch, decision.dtype),
            generator=_generator(self.seed, group.layers[0]),
        )
        self._check_error(found.error, decision)
        return found

    def _check_weight(self, layer: Layer, weight: Tensor) -> None:
        if not is_finite(weight):
            raise LrzipError(f"`{layer.name}` of `{self.source.path}` contains NaN or Inf. Take it out of the plan.")

    def _check_error(self, error: float, decision: Factorize) -> None:
        if isfinite(error):
            return
        name, largest = decision.group.name, torch.finfo(getattr(torch, decision.dtype)).max
        wider = next((f"`dtype={each}` or " for each in _RANGES if torch.finfo(getattr(torch, each)).max > largest), "")
        where = f"`{name}` of `{self.source.path}`"
        raise LrzipError(f"{where} overflows in {decision.dtype}. Use {wider}`skip={name}`.")


def factorize_all(
    plan: Plan, factorizer: Factorizer, progress: Progress
) -> Iterator[tuple[Factorize, GroupFactors, float]]:
    """Yield each decision of a plan with its factors and the seconds they took, several computed at a time."""
    results = map_in_order(
        plan.factorize,
        factorizer.load,
        factorizer.factorize,
        nbytes=lambda decision: sum(map(memory_of, decision.group.layers)),
        device=factorizer.device,
    )
    for index, decision in enumerate(plan.factorize):
        progress("factorizing", decision.layer, index, len(plan.factorize))
        yield decision, *next(results)


def _generator(seed: int, layer: Layer) -> Generator:
    """Return a generator for one layer, so that no result depends on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{layer.weight.name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
