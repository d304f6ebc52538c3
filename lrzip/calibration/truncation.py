"""Measured sensitivity: the change of a network's outputs when one layer at a time is replaced at a low rank."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, MeasuredChanges, Moments, Statistics
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions import Decomposition
from lrzip.linalg.blocks.gram import is_finite
from lrzip.networks.programs.intercept import Intercepted
from lrzip.networks.programs.observe import arguments_of, call_of, tensor_names
from lrzip.networks.programs.rewrite import tensors_of

# Shares of the energy of a layer's outputs that the measured ranks keep: budgets mostly choose ranks in this range.
_ENERGIES = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Truncation:
    """Settings for truncating layers to measure how the network's outputs change.

    Attributes:
        decomposition: A decomposition with one rank, since changes are interpolated over one rank
            (`lrzip.ranks.objectives`). Requests for others are refused where they are made, in
            `lrzip.pipeline.request`.
        statistics: Moments of the inputs of the layers, for which factors are optimal.
        centered: Whether a bias will correct the means that factors miss.
    """

    decomposition: Decomposition
    statistics: Statistics
    centered: bool

    def moments(self, layer: Layer) -> Moments:
        """Return the moments by which the factors of a layer are chosen."""
        moments = self.statistics[layer.name]
        return moments.centered if self.centered else moments

    def ranks(self, layer: Layer, weight: Tensor) -> tuple[int, ...]:
        """Return the ranks to measure, below full rank, ascending."""
        spectrum: Spectrum
        (spectrum,) = self.decomposition.spectra(layer, weight, self.moments(layer))
        most = len(spectrum.values) - 1
        return tuple(sorted({min(spectrum.rank_for_energy(energy), most) for energy in _ENERGIES} - {0}))

    def weight(self, layer: Layer, weight: Tensor, rank: int) -> Tensor:
        """Return the dense weight of the factors of a rank."""
        found = self.decomposition.factorize(
            layer,
            weight,
            (rank,),
            dtype=torch.float32,
            generator=Generator().manual_seed(0),
            moments=self.moments(layer),
        )
        return found.dense(layer.stage).to(weight)

    def missed_mean(self, layer: Layer, missed: Tensor) -> Tensor | None:
        """Return E[(W − W′)x], (outputs,), which a bias will correct; None if it will not.

        Args:
            layer: The layer.
            missed: W − W′, in the shape of the weight.
        """
        if not self.centered or not layer.kind.is_regression:
            return None
        first = self.statistics[layer.name].first
        means = torch.einsum("gmn,gn->gm", layer.kind.unfold(missed.double().cpu(), layer.groups), first)
        return means.flatten().to(missed)


def measure_output_changes(
    program: ExportedProgram, layers: Mapping[str, Layer], batches: Sequence[Arguments], truncation: Truncation
) -> dict[str, MeasuredChanges]:
    """Return the mean squared changes of the outputs of a program when one layer at a time is truncated.

    Args:
        program: The program, in evaluation mode.
        layers: Layers, by the name of their weight in the program.
        batches: Arguments of the runs, one run for each rank of each layer and batch.
        truncation: How layers are truncated.

    Returns:
        Changes by layer name, for the layers that can be factorized.
    """
    weights = dict(tensors_of(program).values())
    found: dict[str, MeasuredChanges] = {}
    with torch.no_grad():
        expected = [_outputs(Interpreter(program.graph_module), program, batch) for batch in batches]
        for name, layer in layers.items():
            weight = weights[name]
            if truncation.decomposition.refuse(layer) or not is_finite(weight):
                continue
            ranks = truncation.ranks(layer, weight)
            changes: list[float] = []
            for rank in ranks:
                new = truncation.weight(layer, weight, rank)
                variant = _with_weight(program, {name: layer}, new, truncation.missed_mean(layer, weight - new))
                changes.append(_difference([_outputs(variant, program, batch) for batch in batches], expected))
            found[layer.name] = MeasuredChanges(ranks, tuple(changes))
    return found


def _with_weight(
    program: ExportedProgram, layers: Mapping[str, Layer], weight: Tensor, added: Tensor | None
) -> Interpreter:
    """Return an interpreter of a program with another weight of one layer.

    Args:
        program: The program.
        layers: The one layer, by the name of its weight.
        weight: The new weight.
        added: Values to add to the outputs of the layer, (outputs,).
    """
    names = tensor_names(program)
    ((name, layer),) = layers.items()

    def intercept(node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        del values
        result = compute()
        if names.get(node) == name:
            return weight
        if added is None or not call_of(node, layers, names):
            return result
        spatial = layer.kind.spatial
        return result + added.reshape(-1, *(1,) * spatial)

    return Intercepted(program.graph_module, intercept)


def _outputs(interpreter: Interpreter, program: ExportedProgram, batch: Arguments) -> list[Tensor]:
    leaves = pytree.tree_leaves(interpreter.run(*arguments_of(program, *batch)))
    return [x.float() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _difference(found: Sequence[list[Tensor]], expected: Sequence[list[Tensor]]) -> float:
    """Return the mean squared difference over all elements."""
    pairs = [pair for batches in zip(found, expected, strict=True) for pair in zip(*batches, strict=True)]
    # Masked elements are −∞ in both.
    squares = [float((output - goal).nan_to_num(nan=0).double().square().sum()) for output, goal in pairs]
    return sum(squares) / max(sum(goal.numel() for _, goal in pairs), 1)
