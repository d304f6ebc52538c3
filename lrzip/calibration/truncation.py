"""MeasuredChanges sensitivity: what a network puts out when one layer at a time has a low rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from lrzip.calibration.regression import unfolded
from lrzip.core.chains import compose
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, MeasuredChanges, Moments, Statistics
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions import Decomposition
from lrzip.linalg.blocks.gram import is_finite
from lrzip.networks.programs.observe import arguments_of, call_of
from lrzip.networks.programs.rewrite import tensors_of

# Shares of the energy of a layer's outputs that the ranks that are tried keep: what budgets choose is mostly there.
_ENERGIES = (0.5, 0.8, 0.95)


def measure(
    program: ExportedProgram,
    layers: Mapping[str, Layer],
    batches: Sequence[Arguments],
    statistics: Statistics,
    decomposition: Decomposition,
    *,
    centered: bool,
) -> dict[str, MeasuredChanges]:
    """Return what a few ranks of each layer alone do to the outputs of a program.

    Args:
        program: In evaluation mode.
        layers: By the name of their weight.
        batches: What to run it on, once for each rank of each layer.
        statistics: Of the inputs of these layers, by which factors are chosen.
        decomposition: Makes them.
        centered: Whether a bias will make up for the means that factors miss.

    Returns:
        By layer name, for those that can be factorized.
    """
    weights = dict(tensors_of(program).values())
    found: dict[str, MeasuredChanges] = {}
    with torch.no_grad():
        expected = [_outputs(Interpreter(program.graph_module), program, batch) for batch in batches]
        for name, layer in layers.items():
            if decomposition.refuse(layer) or not is_finite(weights[name]):
                continue
            seen = statistics[layer.name]
            about = seen.centered if centered else seen
            ranks = _ranks(decomposition.spectra(layer, weights[name], about)[0])
            changes: list[float] = []
            for rank in ranks:
                new = _truncated(layer, weights[name], rank, about, decomposition)
                trial = _Trial(program, name, layer, new, _missed(layer, weights[name] - new, seen, about))
                changes.append(_difference([_outputs(trial, program, batch) for batch in batches], expected))
            found[layer.name] = MeasuredChanges(ranks, tuple(changes))
    return found


def _ranks(spectrum: Spectrum) -> tuple[int, ...]:
    """Return the ranks to try, below full rank."""
    most = len(spectrum.values) - 1
    return tuple(sorted({min(spectrum.rank_for_energy(energy), most) for energy in _ENERGIES} - {0}))


def _truncated(layer: Layer, weight: Tensor, rank: int, about: Moments, decomposition: Decomposition) -> Tensor:
    found = decomposition.factorize(
        layer, weight, (rank,), dtype=torch.float32, generator=Generator().manual_seed(0), moments=about
    )
    return compose(found.weights, layer.kind).to(weight)


def _missed(layer: Layer, missed: Tensor, seen: Moments, about: Moments) -> Tensor | None:
    """Return the mean of what a layer misses, (outputs,), for what a bias will make up for."""
    if about is seen or layer.kind == "embedding" or layer.kind.startswith("conv_transpose"):
        return None
    means = torch.einsum("gmn,gn->gm", unfolded(layer, missed.double().cpu()), seen.first)
    return means.flatten().to(missed)


def _outputs(interpreter: Interpreter, program: ExportedProgram, batch: Arguments) -> list[Tensor]:
    leaves = pytree.tree_leaves(interpreter.run(*arguments_of(program, *batch)))
    return [x.float() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _difference(found: Sequence[list[Tensor]], expected: Sequence[list[Tensor]]) -> float:
    """Return the mean squared difference over all elements."""
    pairs = [pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    # What is masked is −∞ in both.
    squares = [float((ours - theirs).nan_to_num(nan=0).double().square().sum()) for ours, theirs in pairs]
    return sum(squares) / max(sum(theirs.numel() for _, theirs in pairs), 1)


class _Trial(Interpreter):
    """Runs a program with another weight of one layer, and something added to its outputs."""

    def __init__(self, program: ExportedProgram, name: str, layer: Layer, weight: Tensor, added: Tensor | None) -> None:
        super().__init__(program.graph_module)
        self._names = {node: name for node, (name, _) in tensors_of(program).items()}
        self._name, self._layer, self._weight, self._added = name, layer, weight, added

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if self._names.get(n) == self._name:
            return self._weight
        if self._added is None or not call_of(n, {self._name: self._layer}, self._names):
            return result
        spatial = result.dim() - 2 if self._layer.kind.startswith("conv") else 0
        return result + self._added.reshape(-1, *(1,) * spatial)
