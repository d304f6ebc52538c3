"""Fisher sensitivities: how much the outputs of a network depend on the outputs of each layer, by backward passes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrzip.calibration.masks import kept
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments
from lrzip.networks.programs.intercept import Intercepted
from lrzip.networks.programs.observe import arguments_of, call_of, tensor_names


def fisher_sensitivities(
    program: ExportedProgram,
    layers: Mapping[str, Layer],
    batches: Sequence[Arguments],
    *,
    seed: int,
    masks: Sequence[Tensor | None] = (),
) -> dict[str, float]:
    """Return, for each layer, E‖Δz‖² of the network's outputs z for noise of unit second moment in its own outputs.

    That is the mean squared gradient of ⟨z, v⟩ for standard normal v, summed over spatial positions and averaged over
    channels: the Fisher information of a network whose outputs are the means of a unit normal distribution, to first
    order and without interactions among the outputs of a layer. It is estimated from one v per sample.

    Args:
        program: The program, in evaluation mode.
        layers: Layers, by the name of their weight in the program.
        batches: Arguments of the runs.
        seed: Seed of v.
        masks: For each batch the positions whose outputs count, or None for all; empty without masks.

    Returns:
        Sensitivities by layer name, for the layers that the outputs depend on.
    """
    generator = Generator().manual_seed(seed)
    kinds = {layer.name: layer.kind for layer in layers.values()}
    sums: dict[str, float] = {}
    count = 0
    for batch, mask in zip(batches, masks or [None] * len(batches), strict=True):
        calls, outputs = _run(program, layers, batch)
        count += max((len(output) for _, output in calls), default=0)
        gradients = _gradients(kept(mask, outputs), [output for _, output in calls], generator)
        for (name, output), gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                channels = output.shape[kinds[name].channel_axis]
                sums[name] = sums.get(name, 0.0) + float(gradient.double().square().sum()) / channels
    return {name: total / count for name, total in sums.items()}


def _run(
    program: ExportedProgram, layers: Mapping[str, Layer], batch: Arguments
) -> tuple[list[tuple[str, Tensor]], list[Tensor]]:
    """Return the outputs of the calls of layers, with the layers' names, and the outputs of the program that need grad.

    Parameters need no gradients; the outputs of layers do.
    """
    names = tensor_names(program)
    found: dict[str, list[Tensor]] = {}

    def intercept(node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        del values
        result = compute()
        called = call_of(node, layers, names)
        if not called:
            return result
        if not result.requires_grad:
            result.requires_grad_()
        found.setdefault(called[0].name, []).append(result)
        # Later nodes may change the value in place, but its gradient is needed.
        return result.clone()

    arguments = [a.detach() if isinstance(a, Tensor) else a for a in arguments_of(program, *batch)]
    with torch.enable_grad():
        leaves = pytree.tree_leaves(Intercepted(program.graph_module, intercept).run(*arguments))
    outputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    return [(name, output) for name, calls in found.items() for output in calls], outputs


def _gradients(outputs: Sequence[Tensor], calls: Sequence[Tensor], generator: Generator) -> Sequence[Tensor | None]:
    """Return the gradients of ⟨z, v⟩ with respect to the outputs of layers."""
    with torch.enable_grad():
        products = [(x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in outputs]
        if not products or not calls:
            return [None] * len(calls)
        return torch.autograd.grad(torch.stack(products).sum(), list(calls), allow_unused=True)
