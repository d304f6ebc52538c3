"""Analyze: the singular spectrum of every layer, and what it says about compressibility."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrzip.core.costs import Costs
from lrzip.core.layers import Keep
from lrzip.core.plan import SCHEMA, Factorize
from lrzip.core.progress import Progress, silent
from lrzip.core.spectrum import Spectrum
from lrzip.core.version import __version__
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions
from lrzip.formats.open import open_checkpoint
from lrzip.linalg.svd import Solver
from lrzip.linalg.vbmf import noise_rank
from lrzip.networks.architecture import Architecture
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.latency import costs_of
from lrzip.pipeline.profile import profile_of
from lrzip.pipeline.selection import select
from lrzip.pipeline.survey import check_device, survey
from lrzip.ranks import Candidate, Context
from lrzip.ranks.energy import Energy

DEFAULT_ENERGIES = (0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer's candidate, with its one spectrum, and the ranks that energies ask for."""

    candidate: Candidate
    energy_ranks: Mapping[float, int]

    @property
    def noise_rank(self) -> int:
        """Singular values that stand out from white noise, by variational Bayes; may be 0."""
        values = self.candidate.spectra[0]
        return noise_rank(values.values, values.shape).rank

    def to_dict(self, *, spectrum: bool) -> dict[str, Any]:
        """Return the layer as `--json` prints it; numbers that do not exist are None."""
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
    """What a checkpoint holds.

    Attributes:
        source: The file or folder.
        format: Its registered name.
        key: The entry that holds the weights; "" for the file itself.
        nbytes: Size on disk.
        parameters: Floating-point elements, without the running statistics of batch norms.
        tensors: Number of tensors.
        layers: Those that can be factorized, in file order.
        keep: All other tensors, each with its reason.
        parameters_at: What would be left of all parameters, by energy.
        costs_at: What a run of the network would cost, by energy; empty where it is not known how it is run.
        version: Of lrzip.
        inferred: Whether what the layers are was inferred from their weights.
    """

    source: Path
    format: str
    key: str
    nbytes: int
    parameters: int
    tensors: int
    layers: Sequence[LayerAnalysis]
    keep: Sequence[Keep]
    parameters_at: Mapping[float, int]
    costs_at: Mapping[float, Costs]
    version: str
    inferred: bool

    def to_dict(self, *, spectrum: bool = False) -> dict[str, Any]:
        """Return the document that `--json` prints, with all singular values if asked for."""
        run = bool(self.costs_at)
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "source": {"path": str(self.source), "format": self.format, "key": self.key, "nbytes": self.nbytes},
            "totals": {
                "parameters": self.parameters,
                "factorizable_parameters": sum(item.candidate.layer.weight.numel for item in self.layers),
                "tensors": self.tensors,
                "parameters_at_energy": {f"{energy:g}": count for energy, count in self.parameters_at.items()},
            }
            | ({"costs_at_energy": {f"{e:g}": costs.to_dict() for e, costs in self.costs_at.items()}} if run else {}),
            "layers": [item.to_dict(spectrum=spectrum) | self._costs_of(item) for item in self.layers],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.keep],
        }

    def _costs_of(self, item: LayerAnalysis) -> dict[str, Any]:
        """Return what a layer costs to run at the energies at which its factors save."""
        name = item.candidate.layer.name
        costs = {f"{e:g}": c.layers[name].to_dict() for e, c in self.costs_at.items() if name in c.layers}
        return {"costs_at_energy": costs} if self.costs_at else {}


def analyze(
    path: str | Path,
    *,
    energies: Sequence[float] = DEFAULT_ENERGIES,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    model: nn.Module | None = None,
    input_shapes: Sequence[str] = (),
    latency: bool = False,
    key: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Analysis:
    """Compute the singular spectrum of every layer of a checkpoint, exactly.

    Args:
        path: A file of torch.save, torch.export, safetensors or ONNX, or a folder, sharded or of transformers.
        energies: Shares of Σσ², in (0, 1], to say the ranks of.
        only: Globs of the layers to take. A name in full also settles doubts about what a layer is.
        skip: Globs of the layers to leave.
        model: The network that the checkpoint belongs to, which says what its layers are; its weights do not matter.
        input_shapes: One for each input of the network, such as `1,3,32,32`, to tell what a run of it costs.
        latency: Measure dense against factorized on this machine, at each energy.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.
        device: Where to compute.
        progress: Called before each layer.

    Raises:
        LrzipError: It could not be done.
    """
    rules = {energy: Energy(energy) for energy in energies}
    check_device(device)
    decompositions = Decompositions(DEFAULT_DECOMPOSITION, Solver())
    with open_checkpoint(Path(path), key=key, trust=trust) as checkpoint:
        found = profile_of(checkpoint, model, input_shapes, needed=latency)
        items = select(checkpoint.layers(Architecture.of(model) if model else None), only=only, skip=skip)

        def look(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
            return decompositions.of(candidate.layer).spectra(candidate.layer, weight)

        seen = list(survey(checkpoint, items, decompositions, look, device=device, progress=progress))
        candidates = [item for item in seen if isinstance(item, Candidate)]
        chosen = {energy: rule.choose(candidates, Context()).ranks for energy, rule in rules.items()}
        parameters = sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec))
        return Analysis(
            source=Path(path),
            format=checkpoint.format,
            key=checkpoint.key,
            nbytes=checkpoint.nbytes,
            parameters=parameters,
            tensors=len(checkpoint.tensors()),
            layers=[_layer(candidate, chosen) for candidate in candidates],
            keep=[item for item in seen if isinstance(item, Keep)],
            parameters_at={energy: parameters - _saved(candidates, ranks) for energy, ranks in chosen.items()},
            costs_at={
                energy: costs_of(found, _saving(candidates, ranks, decompositions), latency=latency)
                for energy, ranks in chosen.items()
                if found
            },
            version=__version__,
            inferred=model is None and not checkpoint.knows_layers,
        )


def _saving(
    candidates: Sequence[Candidate], ranks: Mapping[str, tuple[int, ...]], decompositions: Decompositions
) -> Sequence[Factorize]:
    """Return the layers whose chains save, as decisions."""
    layers = [
        (candidate.layer, ranks[candidate.layer.name])
        for candidate in candidates
        if candidate.saves(ranks[candidate.layer.name])
    ]
    return [
        Factorize(
            layer,
            decompositions.name_for(layer),
            rank,
            decompositions.of(layer).blueprint(layer, rank),
            layer.weight.dtype,
        )
        for layer, rank in layers
    ]


def _layer(candidate: Candidate, chosen: Mapping[float, Mapping[str, tuple[int, ...]]]) -> LayerAnalysis:
    return LayerAnalysis(candidate, {energy: ranks[candidate.layer.name][0] for energy, ranks in chosen.items()})


def _saved(candidates: Sequence[Candidate], ranks: Mapping[str, tuple[int, ...]]) -> int:
    """Return the elements that the chains of given ranks do away with, where they save at all."""
    return sum(
        max(candidate.layer.weight.numel - candidate.parameters(ranks[candidate.layer.name]), 0)
        for candidate in candidates
    )
