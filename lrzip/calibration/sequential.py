"""Sequential, asymmetric calibration (Zhang et al. 2015, section 3.3): each layer makes up for those before it.

A program runs twice at the same time, with its own weights and with compressed ones, which are found as the run
reaches them. A layer is fitted to what the *dense* network puts out there, from what reaches it in the *compressed*
one: W* = argmin E‖t − Wx′‖² + λ‖W − W₀‖², and its factors are the best of their rank on x′.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.epilogues import Epilogue, find_epilogues, inverse
from lrzip.calibration.regression import Affine, Regression, folded, unfolded
from lrzip.calibration.response import refine
from lrzip.core.activations import Inputs
from lrzip.core.chains import Factors, compose, relative_difference
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments, Statistics, Sums, Targets, piece_size
from lrzip.networks.observe import inputs_of
from lrzip.networks.programs.observe import arguments_of, call_of, window_of
from lrzip.networks.programs.operators import OPERATORS
from lrzip.networks.programs.rewrite import tensors_of

Fit = Callable[[Layer, Tensor, Moments], Factors]
"""Makes the factors of a layer of a weight, for inputs with some moments."""


@dataclass
class Fitted:
    """What a walk found.

    Attributes:
        factors: By layer name.
        tensors: Other tensors that were changed, by their name in the program: biases, running means, whole weights.
    """

    factors: dict[str, Factors] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What a walk is to do.

    Attributes:
        layers: All that take part.
        factorize: Names of those to factorize; the others stay whole, and are fitted again.
        fit: Makes factors.
        statistics: Of the dense network, for layers that cannot be fitted in sequence.
        corrections: What may be changed.
        positions: About how many positions of a layer are looked at.
    """

    layers: Sequence[Layer]
    factorize: frozenset[str]
    fit: Fit
    statistics: Statistics
    corrections: Corrections
    positions: int


def fit_in_sequence(
    program: ExportedProgram, weight_name: Callable[[Layer], str], batches: Sequence[Arguments], job: Job
) -> Fitted:
    """Return factors and changed tensors that bring the outputs of a compressed program near to its own.

    Args:
        program: In evaluation mode.
        weight_name: Of the name of a layer's weight in the program.
        batches: What to run it on. The activations of all of them that are still needed are held in memory, twice.
        job: What to do.
    """
    with torch.no_grad():
        walk = _Walk(program, {weight_name(layer): layer for layer in job.layers}, batches, job)
        walk.run()
    return walk.found


class _Walk:
    def __init__(
        self, program: ExportedProgram, layers: Mapping[str, Layer], batches: Sequence[Arguments], job: Job
    ) -> None:
        self._job, self._layers, self.found = job, layers, Fitted()
        self._interpreter = Interpreter(program.graph_module)
        nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
        runs = [arguments_of(program, args, kwargs) for args, kwargs in batches]
        self._dense: list[dict[Node, Any]] = [dict(zip(nodes, run, strict=True)) for run in runs]
        self._small: list[dict[Node, Any]] = [dict(zip(nodes, run, strict=True)) for run in runs]
        self._names = {node: name for node, (name, _) in tensors_of(program).items()}
        self._nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
        calls = [node for node in self._nodes if call_of(node, layers, self._names)]
        self._most = max(job.positions // len(batches), 1)
        self._epilogues = find_epilogues(calls, residual=job.corrections.residual)

    def run(self) -> None:
        """Walk through the program."""
        order = self._order()
        last = {used: index for index, node in enumerate(order) for used in self._needs(node)}
        frees: dict[int, list[Node]] = {}
        for node, index in last.items():
            frees.setdefault(index, []).append(node)
        for index, node in enumerate(order):
            called = call_of(node, self._layers, self._names)
            self._step(node, self._dense)
            if called and called[0].name not in self.found.factors:
                self._fit(node, *called)
            self._step(node, self._small)
            for dead in frees.get(index, []):
                for env in (*self._dense, *self._small):
                    env.pop(dead, None)

    def _step(self, node: Node, envs: Sequence[dict[Node, Any]]) -> None:
        for env in envs:
            self._interpreter.env = env
            env[node] = self._interpreter.run_node(node)

    def _needs(self, node: Node) -> list[Node]:
        """Return the nodes whose values have to be there when one is reached."""
        epilogue = self._epilogues.get(node)
        others = [epilogue.other] if epilogue and epilogue.other else []
        norm = epilogue.norm.all_input_nodes if epilogue and epilogue.norm else []
        return [*node.all_input_nodes, *others, *(n for n in norm if n.op == "placeholder")]

    def _order(self) -> list[Node]:
        """Return the nodes in an order in which what a layer's target needs comes before it."""
        order: dict[Node, None] = {}
        for node in self._nodes:
            pending = [node]
            while pending:
                first = pending[-1]
                missing = [n for n in self._needs(first) if n not in order and n.op not in ("placeholder", "output")]
                if missing:
                    pending += missing
                else:
                    order.setdefault(pending.pop())
        return list(order)

    def _fit(self, node: Node, layer: Layer, weight: Node) -> None:
        """Find the weight of a layer in the compressed program."""
        factorize = layer.name in self._job.factorize
        old: Tensor = self._dense[0][weight]
        epilogue = self._epilogues[node]
        shift = self._shift(epilogue)
        if len(weight.users) > 1 or layer.kind == "embedding" or layer.kind.startswith("conv_transpose"):
            # Several calls would have several targets; the outputs of others are no products with inputs by position.
            if factorize:
                self._settle(weight, layer, self._job.fit(layer, old, self._job.statistics[layer.name]))
            return
        sums = self._sums(node, layer, old, epilogue)
        inputs, targets = sums.moments(), sums.targets()
        prior = Affine(unfolded(layer, old).double(), self._bias(epilogue, like=targets.first))
        regression = Regression(inputs, prior, free=shift is not None)
        self._put(weight, layer, regression.matrices(targets), regression.about)
        found = regression.completed(unfolded(layer, self._small[0][weight]).double(), targets)
        if self._job.corrections.response and epilogue.rectified:
            better = self._respond(node, layer, epilogue, regression, found)
            if better is not found:
                found = better
                before = self.found.factors.get(layer.name)
                self._put(weight, layer, found.matrices, regression.about)
                if before:  # a weight that has its rank already loses nothing more by factors
                    after = self.found.factors[layer.name]
                    self.found.factors[layer.name] = replace(after, output_error=before.output_error)
        if shift:
            shift(found.constants.flatten())

    def _respond(self, node: Node, layer: Layer, epilogue: Epilogue, regression: Regression, start: Affine) -> Affine:
        """Return what comes nearer to the dense network than a start, behind the ReLU, or that itself."""
        old: Tensor = self._dense[0][node.args[OPERATORS[node.target].weight]]  # type: ignore[index]
        scale, shift = torch.ones_like(start.constants), torch.zeros_like(start.constants)
        if epilogue.norm:
            scale, shift = (value.double().reshape(scale.shape) for value in epilogue.scaling(self._dense[0]))
        behind = replace(regression, prior=regression.prior.then(scale, shift))

        def solve(targets: Targets) -> Affine:
            matrices = behind.matrices(targets)
            if layer.name in self._job.factorize:
                factors = self._job.fit(layer, folded(layer, matrices, old), behind.about)
                matrices = unfolded(layer, compose(factors.weights, layer.kind)).double()
            return behind.completed(matrices, targets)

        first = start.then(scale, shift)
        found = refine(first, solve, lambda: self._responses(node, layer, epilogue))
        back = inverse(scale)
        return start if found is first else found.then(back, -shift * back)

    def _responses(self, node: Node, layer: Layer, epilogue: Epilogue) -> Iterator[tuple[Tensor, ...]]:
        """Yield the positions of a layer in the compressed program in pieces, with what should come before the ReLU."""
        axis = 1 if layer.kind.startswith("conv") else -1
        for number, (dense, small) in enumerate(zip(self._dense, self._small, strict=True), 1):
            goal = dense[node]
            if epilogue.norm:
                scale, shift = (value.reshape(-1, *(1,) * (goal.dim() - 2)) for value in epilogue.scaling(dense))
                goal = goal * scale + shift
            beside = [goal]
            if epilogue.other:
                beside = [goal + dense[epilogue.other], small[epilogue.other]]
            inputs = self._inputs(node, layer, dense, small).thinned(self._most, number)
            parts = [part for value in beside for part in value.chunk(layer.groups, axis)]
            yield from inputs.rows(piece_size(layer.input_size), tuple(parts))

    def _inputs(self, node: Node, layer: Layer, dense: dict[Node, Any], small: dict[Node, Any]) -> Inputs:
        """Return what a layer is applied to in the compressed program, or in the dense one if that is asked for."""
        operator = OPERATORS[node.target]
        given = small if self._job.corrections.sequential else dense
        x, weight = node.args[operator.x], node.args[operator.weight]
        return inputs_of(layer, given[x], window_of(node, dense[weight]))  # type: ignore[index]

    def _bias(self, epilogue: Epilogue, like: Tensor) -> Tensor:
        """Return the layer's own bias."""
        if epilogue.bias is None:
            return torch.zeros_like(like)
        own: Tensor = self._dense[0][epilogue.bias]
        return own.to(like).reshape(like.shape)

    def _sums(self, node: Node, layer: Layer, old: Tensor, epilogue: Epilogue) -> Sums:
        """Return the moments of what reaches a layer in the compressed program, with what it should make of it."""
        groups, rows, columns = unfolded(layer, old).shape
        sums = Sums(columns, groups, outputs=rows)
        axis = 1 if layer.kind.startswith("conv") else -1
        for dense, small in zip(self._dense, self._small, strict=True):
            target = epilogue.target(dense[node], dense, small)
            inputs = self._inputs(node, layer, dense, small)
            sums.add(inputs, target.chunk(groups, axis), most=self._most)
        return sums

    def _put(self, weight: Node, layer: Layer, matrices: Tensor, about: Moments) -> None:
        """Give a layer a new weight, or the factors that come nearest to it on its inputs."""
        new = folded(layer, matrices, self._dense[0][weight])
        if layer.name in self._job.factorize:
            self._settle(weight, layer, self._job.fit(layer, new, about))
        else:
            self._change(weight, new)

    def _settle(self, weight: Node, layer: Layer, factors: Factors) -> None:
        old: Tensor = self._dense[0][weight]
        dense = compose(factors.weights, layer.kind).to(old)
        error = relative_difference(old, dense)
        self.found.factors[layer.name] = replace(factors, error=error)
        self._set(weight, dense)

    def _change(self, node: Node, value: Tensor) -> None:
        changed = value.to(self._dense[0][node])
        self.found.tensors[self._names[node]] = changed
        self._set(node, changed)

    def _set(self, node: Node, value: Tensor) -> None:
        for env in self._small:
            env[node] = value

    def _shift(self, epilogue: Epilogue) -> Callable[[Tensor], None] | None:
        """Return what makes the outputs W′x of a layer have the mean that is wanted, if anything can."""
        if not self._job.corrections.bias:
            return None
        bias, mean = epilogue.bias, epilogue.running_mean
        if bias is not None and bias in self._names and len(bias.users) == 1:
            return lambda missing: self._change(bias, missing)
        if mean is not None and mean in self._names and len(mean.users) == 1:
            own = self._dense[0][bias].double() if bias is not None else 0.0
            return lambda missing: self._change(mean, self._dense[0][mean].double() + own - missing)
        return None
