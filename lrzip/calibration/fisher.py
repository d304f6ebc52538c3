"""How much what a network puts out depends on what each layer puts out: one backward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments
from lrzip.networks.programs.observe import arguments_of, call_of
from lrzip.networks.programs.rewrite import tensors_of


def fisher_sensitivities(
    program: ExportedProgram, layers: Mapping[str, Layer], batches: Sequence[Arguments], *, seed: int
) -> dict[str, float]:
    """Return, for each layer, E‖Δz‖² of the network's outputs z for noise of unit second moment in its own outputs.

    That is the mean squared gradient of ⟨z, v⟩ for random normal v, summed over positions: the Fisher information of a
    network whose outputs are the means of a unit normal distribution, as far as the outputs of a layer do not interact.

    Args:
        program: In evaluation mode.
        layers: By the name of their weight.
        batches: What to run it on.
        seed: Of v.

    Returns:
        By layer name, for layers that influence the outputs; estimated from one v an example.
    """
    generator = Generator().manual_seed(seed)
    watching, kinds = _Observer(program, layers), {layer.name: layer.kind for layer in layers.values()}
    sums: dict[str, float] = {}
    count = 0
    for args, kwargs in batches:
        with torch.enable_grad():
            result = pytree.tree_leaves(watching.run(*arguments_of(program, args, kwargs)))
            outputs = [x for x in result if isinstance(x, Tensor) and x.requires_grad]
            parts = [(x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in outputs]
            nodes = [(name, y) for name, calls in watching.outputs.items() for y in calls]
            gradients: Sequence[Tensor | None] = ()
            if parts and nodes:
                total = torch.stack(parts).sum()
                gradients = torch.autograd.grad(total, [y for _, y in nodes], allow_unused=True)
        count += max((len(y) for _, y in nodes), default=0)
        for (name, y), gradient in zip(nodes, gradients, strict=False):
            if gradient is not None:
                channels = y.shape[1 if kinds[name].startswith("conv") else -1]
                sums[name] = sums.get(name, 0.0) + float(gradient.double().square().sum()) / channels
    return {name: total / count for name, total in sums.items()}


class _Observer(Interpreter):
    """Runs a program with gradients, and keeps the outputs of layers."""

    def __init__(self, program: ExportedProgram, layers: Mapping[str, Layer]) -> None:
        super().__init__(program.graph_module)
        self._names = {node: name for node, (name, _) in tensors_of(program).items()}
        self._layers = layers
        self.outputs: dict[str, list[Tensor]] = {}

    def run(self, *args: Any, **options: Any) -> Any:
        """Run the program once; its parameters need no gradients."""
        self.outputs = {}
        return super().run(*(a.detach() if isinstance(a, Tensor) else a for a in args), **options)

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        called = call_of(n, self._layers, self._names)
        if called:
            if not result.requires_grad:
                result.requires_grad_()
            self.outputs.setdefault(called[0].name, []).append(result)
            # What follows may change a result in place, of which gradients are wanted.
            return result.clone()
        return result
