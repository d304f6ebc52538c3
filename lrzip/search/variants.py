"""Variants of one live network: dense, or with some layers factorized, and conversions between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import UsageError
from lrzip.core.layers import TensorSpec
from lrzip.core.merge import merge
from lrzip.core.options import Factoring, Selection
from lrzip.core.stored import Stored, find_structures
from lrzip.decompositions import FAMILIES
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.networks.state import copy_of, load_tensors, tensors_of
from lrzip.networks.surgery import leave_fast_paths, replacement
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.request import Request, request_of
from lrzip.pipeline.session import Session
from lrzip.pipeline.setup import Setup
from lrzip.ranks import Candidate
from lrzip.ranks.budget import Budget
from lrzip.ranks.fixed import FixedRank
from lrzip.search.limits import Limits
from lrzip.training.data.samples import Samples

Ranks = Mapping[str, tuple[int, ...]]
"""The ranks of each factorized layer, by its name."""

KEPT = "kept by `--max-drop`"
"""Reason to keep the layers that a search leaves dense."""

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
    """The variants of a dense network, as plans of a session over it.

    Attributes:
        model: The dense network, on the CPU; it is never modified.
        selection: The layers that may be factorized.
        factoring: How ranks and factors are computed.
        samples: Calibration data; None computes factors from weights alone.
        calibration: How to calibrate.
        limits: What the output can hold.

    Raises:
        LrzipError: The network has no layer that can be factorized.
        UnknownName: A pattern matches no layer.
        UsageError: The name of the decomposition stands for several ones.
    """

    model: nn.Module
    selection: Selection = field(default_factory=Selection)
    factoring: Factoring = field(default_factory=Factoring)
    samples: Samples | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        name = self.factoring.decomposition
        if name in FAMILIES:
            raise UsageError(f"`decomposition={name}` is for rank rules: a search compares ranks of one decomposition.")
        _ = self.candidates

    @cached_property
    def request(self) -> Request:
        """A request with a budget, which each plan replaces by its own."""
        request = request_of(Budget("params", 1.0, is_share=True), self.selection, self.factoring)
        return replace(request, obstacle=self.limits.obstacle)

    @cached_property
    def session(self) -> Session:
        """The session that plans budgets, with the calibration if there is one."""
        return self.weight_session if self.samples is None else self._calibrated(self.request)

    @cached_property
    def weight_session(self) -> Session:
        """The session that computes factors from weights alone."""
        return Session(self._source, self.request)

    @cached_property
    def candidates(self) -> Sequence[Candidate]:
        """The layers that may be factorized, in order, with the spectra of their weights."""
        return [item for item in self.weight_session.candidates if isinstance(item, Candidate)]

    def with_weights(self, dense: nn.Module) -> "Variants":
        """Return the variants of the same architecture with the weights of another dense network."""
        return replace(self, model=dense)

    def factorized(self, ranks: Ranks) -> Variant:
        """Return the variant with the given ranks; layers whose factors save no parameters stay dense."""
        candidates = {item.layer.name: item for item in self.candidates}
        saving = {name: each for name, each in ranks.items() if name in candidates and candidates[name].saves(each)}
        if not saving:
            return Variant(copy_of(self.model), {})
        if self.samples is None:
            return _built(self.weight_session, saving)
        # The corrections of a calibration depend on which layers are factorized.
        selection = Selection(only=[escape(name) for name in saving])
        session = self._calibrated(replace(self.request, target=FixedRank(1), selection=selection))
        reached = {item.layer.name for item in session.candidates if isinstance(item, Candidate)}
        return _built(session, {name: each for name, each in saving.items() if name in reached})

    def within(self, parameters: int) -> Variant:
        """Return the variant with the ranks that a budget of parameters for the whole network allocates."""
        plan = self.session.plan(Budget("params", parameters, is_share=False))
        return Variant(self.session.network(plan), {item.layer.name: item.ranks for item in plan.factorize})

    def with_one_factorized(self, name: str, ranks: tuple[int, ...]) -> nn.Module:
        """Return the network with one layer factorized from its weight alone, even where that saves no parameters."""
        return _built(self.weight_session, {name: ranks}).network

    def rebuilt(self, state: Mapping[str, Tensor], ranks: Ranks) -> Variant:
        """Return the variant with this state_dict, whose ranks are known."""
        model = copy_of(self.model)
        for stored in self._stored(state):
            model.set_submodule(*replacement(stored, model))
        leave_fast_paths(model)
        load_tensors(model, state)
        return Variant(model, ranks)

    def dense(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the dense network that is equivalent to the variant with this state_dict."""
        merged = dict(state)
        for stored in self._stored(state):
            weights = [merged.pop(spec.name) for spec in stored.weights]
            merged[stored.dense_name] = merge(stored.structure, weights, stored.replaced).to(weights[0].dtype)
            if stored.bias:
                merged[stored.dense_bias_name] = merged.pop(stored.bias.name)
        model = copy_of(self.model)
        load_tensors(model, merged)
        return model

    def fits(self, state: Mapping[str, Tensor], ranks: Ranks) -> bool:
        """Return whether a state_dict is that of the variant with these ranks."""
        stored, dense = self._stored(state), tensors_of(self.model)
        inner = {spec.name for item in stored for spec in (*item.weights, *([item.bias] if item.bias else []))}
        biases = {item.dense_bias_name for item in stored if item.bias}
        covered = {*(state.keys() - inner), *biases, *(item.dense_name for item in stored)}
        alike = all(state[name].shape == dense[name].shape for name in state.keys() & dense.keys())
        sizes = {item.module: sum(spec.numel for spec in item.weights) for item in stored}
        expected = {
            item.layer.name: item.parameters(ranks[item.layer.name])
            for item in self.candidates
            if item.layer.name in ranks
        }
        return alike and sizes == expected and dense.keys() <= covered <= dense.keys() | biases

    def parameters(self, ranks: Ranks) -> int:
        """Return the number of parameters with these ranks; layers whose factors save nothing count as dense."""
        dense = sum(spec.numel for spec in _specs(tensors_of(self.model)).values() if is_parameter(spec))
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

    @property
    def _source(self) -> LiveSource:
        return LiveSource(self.model, self.limits.untouchable)

    def _calibrated(self, request: Request) -> Session:
        return Session(self._source, request, Setup(calibrate=self.samples, calibration=self.calibration))

    def _stored(self, state: Mapping[str, Tensor]) -> Sequence[Stored]:
        return find_structures(_specs(state), Architecture.of(self.model).dense_layers)


def _built(session: Session, ranks: Ranks) -> Variant:
    return Variant(session.network(session.plan_with(ranks, reason=KEPT)), ranks)


def _saved(candidate: Candidate, ranks: tuple[int, ...]) -> int:
    return max(candidate.layer.weight.numel - candidate.parameters(ranks), 0)


def _specs(state: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
