"""Observe the inputs of the layers of a live network by forward hooks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.activations import Inputs, Window
from lrzip.core.kinds import ATTENTION
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Observe


def observe_network(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Arguments], observer: Observe
) -> None:
    """Run a network on batches and pass the inputs of its layers to an observer.

    Args:
        model: The network, in evaluation mode.
        layers: Layers to observe by the path of their module; with `.in_proj` appended for an nn.MultiheadAttention.
        batches: Positional and named arguments of each call.
        observer: Function that receives the name and the inputs of a layer, once per call of the layer.
    """
    with ExitStack() as hooks, torch.no_grad():
        fast = torch.backends.mha.get_fastpath_enabled()
        hooks.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels call no modules
        for path, layer in layers.items():
            module = model.get_submodule(path.removesuffix("in_proj").removesuffix(".") if _attends(layer) else path)
            hook = module.register_forward_pre_hook(_hook(layer, observer), with_kwargs=True)
            hooks.callback(hook.remove)
        for args, kwargs in batches:
            model(*args, **kwargs)


def _attends(layer: Layer) -> bool:
    return layer.kind is ATTENTION


def _hook(layer: Layer, observer: Observe) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _attends(layer):
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            observer(layer.name, Inputs(layer.kind, (named["query"], named["key"], named["value"])))
            return
        x = args[0] if args else next(iter(kwargs.values()))
        window = _window_of(module) if layer.kind.is_plain_convolution else None
        observer(layer.name, inputs_of(layer, x, window))

    return hook


def inputs_of(layer: Layer, x: Tensor, window: Window | None) -> Inputs:
    """Return the inputs of a layer for each group of its weight.

    Args:
        layer: The layer.
        x: Input of the call.
        window: Window of a convolution, None for other layers.
    """
    if layer.kind.is_transposed_convolution:
        return Inputs(layer.kind, (x,))
    if window:
        batched = x if x.dim() == len(window.kernel) + 2 else x[None]
        return Inputs(layer.kind, tuple(batched.chunk(layer.groups, 1)), window)
    return Inputs(layer.kind, (x,) * layer.kind.groups)


def _window_of(module: nn.Module) -> Window:
    values = [getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")]
    return Window.of(*values)
