"""Sequential, asymmetric calibration (Zhang et al. 2015, section 3.3): each layer corrects the errors of earlier ones.

A program runs twice side by side, with its own weights and with compressed ones, which are found as the run reaches
them. The target t of a layer is its output in the *dense* program, and its input x′ is that in the *compressed* one:
W* = argmin E‖t − Wx′‖² + λ‖W − W₀‖², and its factors are the best of their rank on x′.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.epilogues import Epilogue, find_epilogues, inverse
from lrzip.calibration.masks import kept
from lrzip.calibration.paired_run import PairedRun
from lrzip.calibration.regression import Affine, Regression
from lrzip.calibration.response import refine
from lrzip.core.activations import Inputs
from lrzip.core.factors import Factors, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments, Statistics, Sums, Targets, piece_size
from lrzip.networks.observe import inputs_of
from lrzip.networks.programs.observe import call_of, tensor_names, window_of
from lrzip.networks.programs.operators import OPERATORS, tensor_argument

Fit = Callable[[Layer, Tensor, Moments], Factors]
"""Computes the factors of a layer, given a weight and the moments of its inputs."""


@dataclass
class Fitted:
    """Fitted factors and the other tensors that change with them.

    Attributes:
        factors: Factors by layer name.
        tensors: Other changed tensors, by their name in the program: biases, running means, dense weights.
    """

    factors: dict[str, Factors] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """The layers to fit and the corrections to make.

    Attributes:
        layers: All layers that may change.
        factorize: Names of the layers to factorize; the others stay dense and are refitted.
        fit: Computes factors.
        statistics: Moments in the dense network, for layers that cannot be fitted in sequence.
        corrections: Corrections to make.
        positions: Approximate number of spatial positions per layer that are used.
        masks: For each batch the positions that count, or None for all; empty without masks.
    """

    layers: Sequence[Layer]
    factorize: frozenset[str]
    fit: Fit
    statistics: Statistics
    corrections: Corrections
    positions: int
    masks: Sequence[Tensor | None] = ()


def fit_in_sequence(
    program: ExportedProgram, weight_name: Callable[[Layer], str], batches: Sequence[Arguments], job: Job
) -> Fitted:
    """Return factors and other tensors with which the outputs of a compressed program are close to the dense ones.

    Args:
        program: The program, in evaluation mode.
        weight_name: Returns the name of a layer's weight in the program.
        batches: Arguments of the runs. The activations of all of them that are still needed are held in memory, twice.
        job: The layers to fit and the corrections to make.
    """
    with torch.no_grad():
        fitter = _Fitter(program, {weight_name(layer): layer for layer in job.layers}, batches, job)
        fitter.run()
    return fitter.found


@dataclass(frozen=True)
class _Call:
    """A call of a layer: its node, the layer, the node of its weight, and the operations that follow it."""

    node: Node
    layer: Layer
    weight: Node
    epilogue: Epilogue


class _Fitter:
    """Fits layers in the order in which they run."""

    def __init__(
        self, program: ExportedProgram, layers: dict[str, Layer], batches: Sequence[Arguments], job: Job
    ) -> None:
        self._job, self.found = job, Fitted()
        self._run = PairedRun(program, batches)
        self._names = tensor_names(program)
        called = {node: call_of(node, layers, self._names) for node in program.graph.nodes}
        self._called = {node: found for node, found in called.items() if found}
        self._masks = job.masks or [None] * len(batches)
        self._most = max(job.positions // len(batches), 1)
        self._epilogues = find_epilogues(self._called, residual=job.corrections.residual)

    def run(self) -> None:
        """Fit all layers."""
        for node in self._run.walk(self._needs):
            layer, weight = self._called.get(node, (None, None))
            if layer and weight and layer.name not in self.found.factors:
                self._fit(_Call(node, layer, weight, self._epilogues[node]))

    def _needs(self, node: Node) -> list[Node]:
        """Return the nodes whose values must be present when a node is fitted."""
        epilogue = self._epilogues.get(node)
        others = [epilogue.other] if epilogue and epilogue.other else []
        norm = epilogue.norm.all_input_nodes if epilogue and epilogue.norm else []
        return [*node.all_input_nodes, *others, *(n for n in norm if n.op == "placeholder")]

    def _fit(self, call: _Call) -> None:
        """Find the weight of a layer in the compressed program."""
        layer, old = call.layer, self._dense_weight(call)
        if len(call.weight.users) > 1 or not layer.kind.is_regression:
            # A weight with several users has several targets, and outputs of kinds that are not regressions are not
            # products with inputs at each position, so these layers are factorized independently.
            if layer.name in self._job.factorize:
                self._put_factors(call, self._job.fit(layer, old, self._job.statistics[layer.name]))
            return
        shift = self._shift(call.epilogue)
        sums = self._sums(call)
        inputs, targets = sums.moments(), sums.targets()
        prior = Affine(layer.kind.unfold(old, layer.groups).double(), self._bias(call.epilogue, like=targets.first))
        regression = Regression(inputs, prior, free=shift is not None)
        self._put(call, regression.matrices(targets), regression.about)
        found = regression.completed(
            layer.kind.unfold(self._run.compressed[0][call.weight], layer.groups).double(), targets
        )
        if self._job.corrections.response and call.epilogue.rectified:
            found = self._respond(call, regression, found)
        if shift:
            shift(found.constants.flatten())

    def _respond(self, call: _Call, regression: Regression, start: Affine) -> Affine:
        """Fit a layer to the output of the ReLU after it, and return the better of that and the start."""
        better = self._refined(call, regression, start)
        if better is start:
            return start
        name = call.layer.name
        before = self.found.factors.get(name)
        self._put(call, better.matrices, regression.about)
        if before:  # the refined weight already has this rank, so its factors add no error
            self.found.factors[name] = replace(self.found.factors[name], output_error=before.output_error)
        return better

    def _refined(self, call: _Call, regression: Regression, start: Affine) -> Affine:
        layer, old = call.layer, self._dense_weight(call)
        scale, shift = torch.ones_like(start.constants), torch.zeros_like(start.constants)
        if call.epilogue.norm:
            scale, shift = (value.double().reshape(scale.shape) for value in call.epilogue.scaling(self._run.dense[0]))
        behind_norm = replace(regression, prior=regression.prior.then(scale, shift))

        def solve(targets: Targets) -> Affine:
            matrices = behind_norm.matrices(targets)
            if layer.name in self._job.factorize:
                factors = self._job.fit(layer, layer.kind.fold(matrices, old), behind_norm.about)
                matrices = layer.kind.unfold(factors.dense(layer.stage), layer.groups).double()
            return behind_norm.completed(matrices, targets)

        first = start.then(scale, shift)
        found = refine(first, solve, lambda: self._responses(call))
        back = inverse(scale)
        return start if found is first else found.then(back, -shift * back)

    def _responses(self, call: _Call) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of a layer in the compressed program in pieces, with the dense inputs of the ReLU."""
        layer, epilogue = call.layer, call.epilogue
        axis = layer.kind.channel_axis
        runs = zip(self._run.dense, self._run.compressed, self._masks, strict=True)
        for number, (dense, compressed, mask) in enumerate(runs, 1):
            goal = dense[call.node]
            if epilogue.norm:
                scale, shift = (value.reshape(-1, *(1,) * (goal.dim() - 2)) for value in epilogue.scaling(dense))
                goal = goal * scale + shift
            aligned = [goal]
            if epilogue.other:
                aligned = [goal + dense[epilogue.other], compressed[epilogue.other]]
            inputs, kept = _masked(self._inputs(call, dense, compressed), aligned, mask)
            parts = [part for value in kept for part in value.chunk(layer.groups, axis)]
            yield from inputs.subsampled(self._most, number).rows(piece_size(layer.input_size), tuple(parts))

    def _inputs(self, call: _Call, dense: dict[Node, Any], compressed: dict[Node, Any]) -> Inputs:
        """Return the inputs of a layer in the compressed program, or in the dense one without `sequential`."""
        operator = OPERATORS[call.node.target]
        given = compressed if self._job.corrections.sequential else dense
        x, weight = (tensor_argument(call.node, position) for position in (operator.x, operator.weight))
        return inputs_of(call.layer, given[x], window_of(call.node, dense[weight]))

    def _bias(self, epilogue: Epilogue, like: Tensor) -> Tensor:
        """Return the layer's own bias, in the shape of other values."""
        if epilogue.bias is None:
            return torch.zeros_like(like)
        own: Tensor = self._run.dense[0][epilogue.bias]
        return own.to(like).reshape(like.shape)

    def _sums(self, call: _Call) -> Sums:
        """Return the moments of a layer's inputs in the compressed program and of its targets."""
        layer = call.layer
        groups, rows, columns = layer.kind.unfold(self._dense_weight(call), layer.groups).shape
        sums = Sums(columns, groups, outputs=rows)
        axis = layer.kind.channel_axis
        for dense, compressed, mask in zip(self._run.dense, self._run.compressed, self._masks, strict=True):
            goal = call.epilogue.target(dense[call.node], dense, compressed)
            inputs, (target,) = _masked(self._inputs(call, dense, compressed), [goal], mask)
            sums.add(inputs, target.chunk(groups, axis), most=self._most)
        return sums

    def _dense_weight(self, call: _Call) -> Tensor:
        weight: Tensor = self._run.dense[0][call.weight]
        return weight

    def _put(self, call: _Call, matrices: Tensor, about: Moments) -> None:
        """Set the weight of a layer, or the factors that are nearest to it on its inputs."""
        new = call.layer.kind.fold(matrices, self._dense_weight(call))
        if call.layer.name in self._job.factorize:
            self._put_factors(call, self._job.fit(call.layer, new, about))
        else:
            self._change(call.weight, new)

    def _put_factors(self, call: _Call, factors: Factors) -> None:
        old = self._dense_weight(call)
        dense = factors.dense(call.layer.stage).to(old)
        error = relative_difference(old, dense)
        self.found.factors[call.layer.name] = replace(factors, error=error)
        self._run.replace(call.weight, dense)

    def _change(self, node: Node, value: Tensor) -> None:
        changed = value.to(self._run.dense[0][node])
        self.found.tensors[self._names[node]] = changed
        self._run.replace(node, changed)

    def _shift(self, epilogue: Epilogue) -> Callable[[Tensor], None] | None:
        """Return a function that corrects the mean of a layer's outputs W′x, or None if that is not wanted or possible.

        The function takes the constants c of W′x + c. It sets the layer's bias to c, or subtracts the difference
        between c and the layer's bias from the running mean of the batch norm.
        """
        if not self._job.corrections.bias:
            return None
        bias, mean = epilogue.bias, epilogue.running_mean
        if bias is not None and bias in self._names and len(bias.users) == 1:
            return lambda constants: self._change(bias, constants)
        if mean is not None and mean in self._names and len(mean.users) == 1:
            own = self._run.dense[0][bias].double() if bias is not None else 0.0
            return lambda constants: self._change(mean, self._run.dense[0][mean].double() + own - constants)
        return None


def _masked(inputs: Inputs, outputs: Sequence[Tensor], mask: Tensor | None) -> tuple[Inputs, Sequence[Tensor]]:
    """Return the inputs of a layer and values shaped like its outputs at the positions that a mask keeps."""
    found = inputs.masked(mask)
    return (inputs, outputs) if found is inputs else (found, kept(mask, outputs))
