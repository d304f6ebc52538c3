"""Dense and factorized forms of one live network, and the way between them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lrzip.api.factorize import factorize
from lrzip.core.chains import Chain, compose, find_chains
from lrzip.core.layers import TensorSpec, tensor_name
from lrzip.core.plan import Factorize
from lrzip.core.progress import silent
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions, decomposition_of
from lrzip.formats.live import LiveSource
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import is_parameter
from lrzip.networks.surgery import leave_fast_paths, replaced, replacement
from lrzip.pipeline.selection import select
from lrzip.pipeline.survey import refuse_if_hopeless, survey
from lrzip.ranks import Candidate
from lrzip.training.data.samples import Samples

Ranks = Mapping[str, int]
"""The rank of each factorized layer, by its name."""


@dataclass(frozen=True)
class Variants:
    """What one network may look like: whole, or with some of its layers factorized.

    Attributes:
        model: Whole, on the CPU; it is never changed.
        architecture: Of it.
        candidates: The layers that may be factorized, in order, with their spectra.
        options: Of `lrzip.factorize`: how factors are computed.
        examples: What the network gets, by which factors are chosen; None for plain ones.
    """

    model: nn.Module
    architecture: Architecture
    candidates: Sequence[Candidate]
    options: Mapping[str, Any]
    examples: Samples | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        examples: Samples | None = None,
    ) -> "Variants":
        """Return the forms of a network with its weights.

        Raises:
            LrzipError: It has no layer that can be factorized.
            UnknownName: A pattern matches nothing.
        """
        source, architecture = LiveSource(model), Architecture.of(model)
        decompositions = Decompositions(DEFAULT_DECOMPOSITION, Solver())
        found = source.layers(architecture)
        refuse_if_hopeless(source, found)
        items = select(found, only=only, skip=skip)

        def look(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
            return decompositions.of(candidate.layer).spectra(candidate.layer, weight)

        seen = survey(source, items, decompositions, look, device="cpu", progress=silent)
        candidates = [item for item in seen if isinstance(item, Candidate)]
        return cls(model, architecture, candidates, options or {}, examples)

    def with_weights(self, dense: nn.Module) -> "Variants":
        """Return the forms of the same network with other weights."""
        decomposition, state = decomposition_of(DEFAULT_DECOMPOSITION, Solver()), dense.state_dict()
        candidates = [
            replace(item, spectra=decomposition.spectra(item.layer, state[item.layer.weight.name]))
            for item in self.candidates
        ]
        return replace(self, model=dense, candidates=candidates)

    def factorized(self, ranks: Ranks) -> nn.Module:
        """Return a copy with layers of given ranks; where that saves nothing, the layer stays whole."""
        if not ranks:
            return copy.deepcopy(self.model)
        rules = {escape(name): f"rank:{rank}" for name, rank in ranks.items()}
        return factorize(self.model, rank=1, layers=rules, only=list(rules), calibrate=self.examples, **self.options)

    def within(self, parameters: int) -> nn.Module:
        """Return a copy with the ranks that a budget of parameters gives all layers together."""
        names = [escape(candidate.layer.name) for candidate in self.candidates]
        return factorize(self.model, budget=f"params={parameters}", only=names, calibrate=self.examples, **self.options)

    def alone(self, candidate: Candidate, rank: int) -> nn.Module:
        """Return a copy with one layer at some rank, also where that saves nothing."""
        layer, ranks, name = candidate.layer, (rank,), DEFAULT_DECOMPOSITION
        decomposition = decomposition_of(name, Solver())
        weight = self.model.state_dict()[layer.weight.name]
        decision = Factorize(layer, name, ranks, decomposition.blueprint(layer, ranks), layer.weight.dtype)
        factors = decomposition.factorize(layer, weight, ranks, dtype=weight.dtype, generator=Generator())
        chain = Chain(layer.module, decision.outputs, layer.bias, layer.kind)
        result = replaced(copy.deepcopy(self.model), chain, factors.weights)
        leave_fast_paths(result)
        return result

    def built(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return a network with this state, factorized where the state is."""
        model = copy.deepcopy(self.model)
        for chain in self.chains(state):
            model.set_submodule(*replacement(chain, model))
        leave_fast_paths(model)
        model.load_state_dict(state)
        return model

    def dense(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the whole network that computes what one with this state does."""
        composed = dict(state)
        for chain in self.chains(state):
            weights = [composed.pop(spec.name) for spec in chain.weights]
            composed[chain.dense_name] = compose(weights, chain.kind).to(weights[0].dtype)
            if chain.bias:
                composed[tensor_name(chain.module, chain.kind, "bias")] = composed.pop(chain.bias.name)
        model = copy.deepcopy(self.model)
        model.load_state_dict(composed)
        return model

    def chains(self, state: Mapping[str, Tensor]) -> Sequence[Chain]:
        """Return the chains in a state."""
        return find_chains(_specs(state), self.architecture.kinds)

    def ranks(self, state: Mapping[str, Tensor]) -> Ranks:
        """Return the ranks of the chains in a state."""
        by_module = {candidate.layer.module: candidate for candidate in self.candidates}
        found = {chain.module: sum(spec.numel for spec in chain.weights) for chain in self.chains(state)}
        return {
            candidate.layer.name: candidate.largest_rank(found[module])
            for module, candidate in by_module.items()
            if module in found
        }

    def parameters(self, ranks: Ranks) -> int:
        """Return the parameters of the whole network with these ranks, where they save."""
        whole = sum(spec.numel for spec in _specs(self.model.state_dict()).values() if is_parameter(spec))
        return whole - sum(_saved(item, ranks[item.layer.name]) for item in self.candidates if item.layer.name in ranks)

    def least(self, names: Sequence[str]) -> int:
        """Return the parameters with the smallest ranks of some layers."""
        return self.parameters(dict.fromkeys(names, 1))

    def largest(self, parameters: int, choose: Callable[[float], Ranks]) -> Ranks:
        """Return the ranks of the largest form within a number of parameters, of a family that grows with a share.

        Args:
            parameters: The most.
            choose: The ranks for a share from 0 to 1.
        """
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            fits = self.parameters(choose(middle)) <= parameters
            low, high = (middle, high) if fits else (low, middle)
        return choose(low)


def _saved(candidate: Candidate, rank: int) -> int:
    return max(candidate.layer.weight.numel - candidate.parameters((rank,)), 0)


def _specs(state: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
