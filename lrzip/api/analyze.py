"""Analyze a checkpoint: the singular values of every layer, and the ranks that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from lrzip.api.keywords import ANALYZE_GROUPS, AnalyzeOptions
from lrzip.core.costs import Costs
from lrzip.core.decisions import Factorize
from lrzip.core.declarations import Options, documented
from lrzip.core.layers import Keep, Layer
from lrzip.core.options import Inputs, Machine, Network, Opening, Selection, Timing
from lrzip.core.output_options import Analyzing
from lrzip.core.plan import SCHEMA
from lrzip.core.report import EntryChoice
from lrzip.core.spectrum import Spectrum
from lrzip.core.version import __version__
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions
from lrzip.formats.adapters import as_adapter
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint, entry_of
from lrzip.linalg.svd import Solver
from lrzip.linalg.vbmf import noise_rank
from lrzip.networks.architecture import Architecture
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.latency import costs_of
from lrzip.pipeline.profile import Profile, profile_of
from lrzip.pipeline.selection import select
from lrzip.pipeline.subnormal_weights import SubnormalWeight, find_subnormal_weights
from lrzip.pipeline.survey import check_device, survey
from lrzip.ranks import Candidate, Context
from lrzip.ranks.energy import Energy

_DECOMPOSITIONS = Decompositions(DEFAULT_DECOMPOSITION, Solver())


@dataclass(frozen=True)
class LayerAnalysis:
    """The candidate of a layer with its spectrum, and the ranks for shares of the energy."""

    candidate: Candidate
    energy_ranks: Mapping[float, int]

    @property
    def noise_rank(self) -> int:
        """Number of singular values above white noise, by variational Bayes; may be 0."""
        values = self.candidate.spectra[0]
        return noise_rank(values.values, values.shape).rank

    def to_dict(self, *, spectrum: bool) -> dict[str, Any]:
        """Return the layer as part of the JSON document; undefined numbers are None."""
        layer, values = self.candidate.layer, self.candidate.spectra[0]
        document: dict[str, Any] = {
            "name": layer.name,
            "tensor": layer.weight.name,
            "kind": str(layer.kind),
            "shape": list(layer.weight.shape),
            "matrix": list(layer.matrix_shape),
            "dtype": layer.weight.dtype,
            "parameters": layer.weight.numel,
            "rank": values.numerical_rank,
            "energy_ranks": {f"{energy:g}": rank for energy, rank in self.energy_ranks.items()},
            "break_even_rank": self.candidate.break_even_rank,
            "noise_rank": self.noise_rank,
            "condition_number": values.condition_number,
            "effective_rank": values.effective_rank,
            "stable_rank": values.stable_rank,
            "spectral_norm": values.spectral_norm,
            "frobenius_norm": values.frobenius_norm,
            "decay_rate": values.decay_rate,
        }
        return document | ({"spectrum": values.values.tolist()} if spectrum else {})


@dataclass(frozen=True)
class Analysis:
    """The analysis of a checkpoint.

    Attributes:
        source: File or folder.
        format: Registered name of the format.
        entry: Entry of a nested file that holds the weights.
        nbytes: Size on disk in bytes.
        parameters: Number of floating-point elements, without the running statistics of batch norms.
        tensors: Number of tensors.
        layers: Layers that can be factorized, in file order.
        keep: All other tensors, with the reasons to keep them.
        parameters_at: Number of parameters after factorization, by energy.
        costs_at: Costs of a run after factorization, by energy; empty if it is not known how to run the network.
        version: Version of lrzip.
        subnormal: Weights with many subnormal numbers.
        inferred: Whether the kinds of layers were inferred from their weights.
    """

    source: Path
    format: str
    entry: EntryChoice
    nbytes: int
    parameters: int
    tensors: int
    layers: Sequence[LayerAnalysis]
    keep: Sequence[Keep]
    parameters_at: Mapping[float, int]
    costs_at: Mapping[float, Costs]
    version: str
    subnormal: Sequence[SubnormalWeight]
    inferred: bool

    def to_dict(self, *, spectrum: bool = False) -> dict[str, Any]:
        """Return the analysis as a JSON document, with all singular values if requested."""
        run = bool(self.costs_at)
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "source": {"path": str(self.source), "format": self.format, "nbytes": self.nbytes} | self.entry.to_dict(),
            "totals": {
                "parameters": self.parameters,
                "factorizable_parameters": sum(item.candidate.layer.weight.numel for item in self.layers),
                "tensors": self.tensors,
                "parameters_at_energy": {f"{energy:g}": count for energy, count in self.parameters_at.items()},
            }
            | ({"costs_at_energy": {f"{e:g}": costs.to_dict() for e, costs in self.costs_at.items()}} if run else {}),
            "layers": [item.to_dict(spectrum=spectrum) | self._costs_of(item) for item in self.layers],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.keep],
            "subnormals": [weight.to_dict() for weight in self.subnormal],
        }

    def _costs_of(self, item: LayerAnalysis) -> dict[str, Any]:
        """Return the costs of a layer at the energies at which its factors save parameters."""
        name = item.candidate.layer.name
        costs = {f"{e:g}": c.layers[name].to_dict() for e, c in self.costs_at.items() if name in c.layers}
        return {"costs_at_energy": costs} if self.costs_at else {}


@documented(AnalyzeOptions, *ANALYZE_GROUPS)
def analyze(path: str | Path, **options: Unpack[AnalyzeOptions]) -> Analysis:
    """Compute the singular values of every layer of a checkpoint, exactly.

    Args:
        path: File written by torch.save, torch.export, safetensors or ONNX, or a sharded or transformers folder.
        **options: Keywords as declared in `lrzip.core.options`.

    Raises:
        LrzipError: The checkpoint could not be analyzed.
    """
    given = Options("analyze", AnalyzeOptions, options)
    rules = {energy: Energy(energy) for energy in given[Analyzing].energies}
    model, opening, machine = given[Network].model, given[Opening], given[Machine]
    check_device(machine.device)
    with as_adapter(open_checkpoint(Path(path), key=opening.key, trust=opening.trust)) as checkpoint:
        latency = given[Timing].latency
        profile = profile_of(checkpoint, model, given[Inputs].input_shapes, needed=latency)
        layers = checkpoint.layers(Architecture.of(model) if model else None)
        items = _surveyed(checkpoint, select(layers, **vars(given[Selection])), machine)
        candidates = [item for item in items if isinstance(item, Candidate)]
        chosen = {energy: rule.choose(candidates, Context()).ranks for energy, rule in rules.items()}
        parameters = sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec))
        return Analysis(
            source=Path(path),
            format=checkpoint.format,
            entry=entry_of(checkpoint),
            nbytes=checkpoint.nbytes,
            parameters=parameters,
            tensors=len(checkpoint.tensors()),
            layers=[_layer(candidate, chosen) for candidate in candidates],
            keep=[item for item in items if isinstance(item, Keep)],
            parameters_at={energy: parameters - _saved(candidates, ranks) for energy, ranks in chosen.items()},
            costs_at=_costs(profile, candidates, chosen, latency=latency),
            version=__version__,
            subnormal=find_subnormal_weights(checkpoint),
            inferred=model is None and not checkpoint.knows_layers,
        )


def _surveyed(checkpoint: Checkpoint, items: Sequence[Layer | Keep], machine: Machine) -> Sequence[Candidate | Keep]:
    """Return layers as candidates with exact spectra."""

    def spectra(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
        return _DECOMPOSITIONS.of(candidate.decomposition).spectra(candidate.layer, weight)

    return list(survey(checkpoint, items, _DECOMPOSITIONS, spectra, **vars(machine)))


def _costs(
    profile: Profile | None,
    candidates: Sequence[Candidate],
    chosen: Mapping[float, Mapping[str, tuple[int, ...]]],
    *,
    latency: bool,
) -> Mapping[float, Costs]:
    """Return the costs of a run by energy; none if it is not known how to run the network."""
    if profile is None:
        return {}
    return {energy: costs_of(profile, _saving(candidates, ranks), latency=latency) for energy, ranks in chosen.items()}


def _saving(candidates: Sequence[Candidate], ranks: Mapping[str, tuple[int, ...]]) -> Sequence[Factorize]:
    """Return the decisions to factorize those layers whose factors save parameters."""
    layers = [
        (candidate.layer, ranks[candidate.layer.name])
        for candidate in candidates
        if candidate.saves(ranks[candidate.layer.name])
    ]
    return [
        Factorize.of(
            layer,
            DEFAULT_DECOMPOSITION,
            rank,
            _DECOMPOSITIONS.of(DEFAULT_DECOMPOSITION).blueprint(layer, rank),
            layer.weight.dtype,
        )
        for layer, rank in layers
    ]


def _layer(candidate: Candidate, chosen: Mapping[float, Mapping[str, tuple[int, ...]]]) -> LayerAnalysis:
    return LayerAnalysis(candidate, {energy: ranks[candidate.layer.name][0] for energy, ranks in chosen.items()})


def _saved(candidates: Sequence[Candidate], ranks: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of parameters that factors of given ranks save, in the layers where they do."""
    return sum(
        max(candidate.layer.weight.numel - candidate.parameters(ranks[candidate.layer.name]), 0)
        for candidate in candidates
    )
