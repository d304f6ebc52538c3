"""Variants of one live network: dense, or with some layers factorized, and conversions between them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lrzip.api.factorize import factorize
from lrzip.core.layers import TensorSpec
from lrzip.core.merge import merge
from lrzip.core.plan import Factorize
from lrzip.core.progress import silent
from lrzip.core.spectrum import Spectrum
from lrzip.core.stored import Stored, find_structures
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions, decomposition_of
from lrzip.formats.live import LiveSource
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.networks.surgery import leave_fast_paths, replace_layer, replacement
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.selection import select
from lrzip.pipeline.survey import refuse_if_hopeless, survey
from lrzip.ranks import Candidate
from lrzip.training.data.samples import Samples

Ranks = Mapping[str, tuple[int, ...]]
"""The ranks of each factorized layer, by its name."""

# Halvings of the interval of shares: enough to separate any two ranks.
_BISECTIONS = 40


@dataclass(frozen=True)
class Variant:
    """A network with some layers factorized.

    Attributes:
        network: The network, on the CPU.
        ranks: Ranks of its factorized layers.
    """

    network: nn.Module
    ranks: Ranks


@dataclass(frozen=True)
class Variants:
    """The variants of a dense network.

    Attributes:
        model: The dense network, on the CPU; it is never modified.
        architecture: Its architecture.
        candidates: The layers that may be factorized, in order, with their spectra.
        options: Options of `lrzip.factorize`: how factors are computed and budgets spent.
        samples: Calibration data; None computes factors from weights alone.
    """

    model: nn.Module
    architecture: Architecture
    candidates: Sequence[Candidate]
    options: Mapping[str, Any]
    samples: Samples | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        samples: Samples | None = None,
    ) -> "Variants":
        """Return the variants of a dense network.

        Args:
            model: The network.
            only: Patterns of the layers to include.
            skip: Patterns of the layers to exclude.
            options: Options of `lrzip.factorize`.
            samples: Calibration data.

        Raises:
            LrzipError: The network has no layer that can be factorized.
            UnknownName: A pattern matches no layer.
        """
        source, architecture = LiveSource(model), Architecture.of(model)
        decompositions = Decompositions(DEFAULT_DECOMPOSITION, Solver())
        found = source.layers(architecture)
        refuse_if_hopeless(source, found)
        items = select(found, only=only, skip=skip)

        def spectra(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
            return decompositions.of(candidate.layer).spectra(candidate.layer, weight)

        surveyed = survey(source, items, decompositions, spectra, device="cpu", progress=silent)
        candidates = [item for item in surveyed if isinstance(item, Candidate)]
        return cls(model, architecture, candidates, options or {}, samples)

    def with_weights(self, dense: nn.Module) -> "Variants":
        """Return the variants of the same architecture with the weights of another dense network."""
        decomposition, state = decomposition_of(DEFAULT_DECOMPOSITION, Solver()), dense.state_dict()
        candidates = [
            replace(item, spectra=decomposition.spectra(item.layer, state[item.layer.weight.name]))
            for item in self.candidates
        ]
        return replace(self, model=dense, candidates=candidates)

    def factorized(self, ranks: Ranks) -> Variant:
        """Return the variant with the given ranks; layers whose factors save no parameters stay dense."""
        if not ranks:
            return Variant(copy.deepcopy(self.model), {})
        rules = {escape(name): f"rank:{rank}" for name, (rank,) in ranks.items()}
        network = factorize(self.model, rank=1, layers=rules, only=list(rules), calibrate=self.samples, **self.options)
        return Variant(network, self._ranks_of(network))

    def within(self, parameters: int) -> Variant:
        """Return the variant whose ranks one budget of parameters allocates to all layers."""
        names = [escape(candidate.layer.name) for candidate in self.candidates]
        network = factorize(
            self.model, budget=f"params={parameters}", only=names, calibrate=self.samples, **self.options
        )
        return Variant(network, self._ranks_of(network))

    def with_one_factorized(self, candidate: Candidate, ranks: tuple[int, ...]) -> nn.Module:
        """Return the network with one layer factorized, even where that saves no parameters."""
        layer, name = candidate.layer, DEFAULT_DECOMPOSITION
        decomposition = decomposition_of(name, Solver())
        weight = self.model.state_dict()[layer.weight.name]
        decision = Factorize(layer, name, ranks, decomposition.blueprint(layer, ranks), layer.weight.dtype)
        factors = decomposition.factorize(layer, weight, ranks, dtype=weight.dtype, generator=Generator())
        result = replace_layer(copy.deepcopy(self.model), decision.stored(layer.module), factors.weights)
        leave_fast_paths(result)
        return result

    def rebuilt(self, state: Mapping[str, Tensor], ranks: Ranks) -> Variant:
        """Return the variant with this state_dict, whose ranks are known."""
        model = copy.deepcopy(self.model)
        for chain in self._chains(state):
            model.set_submodule(*replacement(chain, model))
        leave_fast_paths(model)
        model.load_state_dict(state)
        return Variant(model, ranks)

    def dense(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the dense network that computes the same as the variant with this state_dict."""
        composed = dict(state)
        for chain in self._chains(state):
            weights = [composed.pop(spec.name) for spec in chain.weights]
            composed[chain.dense_name] = merge(chain.structure, weights, chain.replaced).to(weights[0].dtype)
            if chain.bias:
                composed[chain.dense_bias_name] = composed.pop(chain.bias.name)
        model = copy.deepcopy(self.model)
        model.load_state_dict(composed)
        return model

    def parameters(self, ranks: Ranks) -> int:
        """Return the number of parameters of the network with these ranks, where they save any."""
        dense = sum(spec.numel for spec in _specs(self.model.state_dict()).values() if is_parameter(spec))
        return dense - sum(_saved(item, ranks[item.layer.name]) for item in self.candidates if item.layer.name in ranks)

    def least_parameters(self, names: Sequence[str]) -> int:
        """Return the number of parameters with the smallest ranks of some layers."""
        chosen = [item for item in self.candidates if item.layer.name in names]
        return self.parameters({item.layer.name: item.equal(1) for item in chosen})

    def largest_ranks(self, parameters: int, choose: Callable[[float], Ranks]) -> Ranks:
        """Return the ranks of the largest variant of a family within a number of parameters.

        Args:
            parameters: Largest number of parameters.
            choose: Returns the ranks for a share from 0 to 1; parameters must not fall as the share grows.
        """
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = self.parameters(choose(middle)) <= parameters
            low, high = (middle, high) if fits else (low, middle)
        return choose(low)

    def _chains(self, state: Mapping[str, Tensor]) -> Sequence[Stored]:
        return find_structures(_specs(state), self.architecture.dense_layers)

    def _ranks_of(self, network: nn.Module) -> Ranks:
        sizes = {
            chain.module: sum(spec.numel for spec in chain.weights) for chain in self._chains(network.state_dict())
        }
        return {
            item.layer.name: item.equal(item.largest_rank(sizes[item.layer.module]))
            for item in self.candidates
            if item.layer.module in sizes
        }


def _saved(candidate: Candidate, ranks: tuple[int, ...]) -> int:
    return max(candidate.layer.weight.numel - candidate.parameters(ranks), 0)


def _specs(state: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
