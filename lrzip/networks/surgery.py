"""Replace modules of a live network by chains of modules."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lrzip.core.chains import Chain, Factors, dense_shape, groups_of, kernel_stage
from lrzip.core.errors import LrzipError
from lrzip.core.layers import tensor_name
from lrzip.core.plan import Plan
from lrzip.networks.architecture import module_info
from lrzip.networks.attention import PROJECTIONS, SplitAttention

_Ordinary: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_ORDINARY = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = dict(enumerate(_ORDINARY, 1))
_CONV_TRANSPOSES = dict(enumerate(_TRANSPOSED, 1))


def replacement(chain: Chain, model: nn.Module) -> tuple[str, nn.Module]:
    """Return what has to stand where in a network so that a chain's weights have their names in it.

    Returns:
        The path of a module of `model`, and a module to put there.

    Raises:
        LrzipError: The chain does not stand for what is there.
    """
    if chain.kind != "attention":
        return chain.module, sequential(chain, model.get_submodule(chain.module))
    path = chain.module.removesuffix("in_proj").removesuffix(".")
    attention = model.get_submodule(path)
    if not isinstance(attention, nn.MultiheadAttention):
        raise LrzipError(f"`{path}` is {type(attention).__name__} in the model, not nn.MultiheadAttention.")
    shapes = [spec.shape for spec in chain.weights]
    stored = dense_shape(shapes, chain.kind), groups_of(shapes, chain.kind)
    if stored != (tuple(attention.in_proj_weight.shape), PROJECTIONS):
        raise LrzipError(f"`{chain.module}` stands for {stored[0]}, but the model has other projections there.")
    return path, SplitAttention(attention, shapes[1][1])


def sequential(chain: Chain, layer: nn.Module) -> nn.Sequential:
    """Return the modules of a chain, with the attributes of the layer that they replace.

    Along each axis, the stage that has the layer's kernel there takes its stride, padding and dilation; the other
    stages are pointwise in it.

    Args:
        chain: Shapes of the stages.
        layer: nn.Linear, nn.Embedding, a convolution, a transposed one without groups, or transformers' Conv1D.

    Raises:
        LrzipError: The chain does not stand for this layer.
    """
    what = module_info(layer)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if what.kind is None or what.reason or not isinstance(weight, Tensor):
        raise LrzipError(
            f"`{chain.module}` is {type(layer).__name__} in the model, which a chain cannot replace. "
            f"Compress again with `--skip {chain.module}`."
        )
    shapes = [spec.shape for spec in chain.weights]
    stored = (dense_shape(shapes, what.kind), chain.bias is not None, groups_of(shapes, what.kind))
    expected = (tuple(weight.shape), bias is not None, what.groups)
    if stored != expected:
        raise LrzipError(
            f"`{chain.module}` stands for (shape, has bias, groups) {stored}, but the model has {expected} there."
        )
    biases = [False] * (len(shapes) - 1) + [bias is not None]
    if isinstance(layer, nn.Embedding):
        stages = _embedding(layer, shapes)
    elif isinstance(layer, _TRANSPOSED):
        stages = _transposed(layer, shapes, bias=bias is not None)
    elif isinstance(layer, _ORDINARY):
        taken = [_carrier(shapes, axis, size) for axis, size in enumerate(layer.kernel_size)]
        stages = [_conv(layer, shape, taken, index, bias=biases[index]) for index, shape in enumerate(shapes)]
    else:
        stages = [nn.Linear(inner, out, bias=b) for (out, inner), b in zip(shapes, biases, strict=True)]
    return nn.Sequential(*stages).to(weight.device, weight.dtype).train(layer.training)


def replaced(model: nn.Module, chain: Chain, weights: Sequence[Tensor]) -> nn.Module:
    """Replace a module of a network, in place, by a chain with these weights and with the layer's own bias.

    Returns:
        The network, or the chain where that stands for the network itself.
    """
    names = [tensor_name(chain.module, chain.kind, leaf) for leaf in ("weight", "bias")]
    weight, bias = (model.get_parameter(name) if name == names[0] or chain.bias else None for name in names)
    path, module = replacement(chain, model)
    stages = list(module.get_submodule(chain.module.removeprefix(path).removeprefix(".")).children())
    for stage, value in zip(stages, weights, strict=True):
        with torch.no_grad():
            stage.get_parameter("weight").copy_(value)
        stage.requires_grad_(weight is not None and weight.requires_grad)
    if bias is not None:
        stages[-1].register_parameter("bias", bias)
    if not path:
        return module
    model.set_submodule(path, module)
    return model


def assemble(model: nn.Module, plan: Plan, factors: Mapping[str, Factors], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Replace the layers of a plan by chains, and change other tensors, in place.

    Args:
        model: The network.
        plan: Of its layers.
        factors: Of each of them, by its name.
        tensors: New values of others, by their name in the network.

    Returns:
        The network, or the chain where that stands for the network itself.
    """
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    result = model
    for decision in plan.factorize:
        layer = decision.layer
        names = layer.stage_names(len(decision.stages))
        specs = tuple(spec.renamed(name) for spec, name in zip(decision.outputs, names, strict=True))
        result = replaced(result, Chain(layer.path, specs, layer.bias, layer.kind), factors[layer.name].weights)
    leave_fast_paths(result)
    return result


def _embedding(layer: nn.Embedding, shapes: Sequence[tuple[int, ...]]) -> list[nn.Module]:
    """Return a narrow embedding and a linear layer; a row of padding is zero in both."""
    (rows, rank), (width, _) = shapes
    first = nn.Embedding(
        rows, rank, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq, sparse=layer.sparse
    )
    return [first, nn.Linear(rank, width, bias=False)]


def _transposed(layer: _Transposed, shapes: Sequence[tuple[int, ...]], *, bias: bool) -> list[nn.Module]:
    """Return a pointwise convolution and a transposed one, which has all attributes of the layer."""
    (rank, inner, *points), (_, out, *kernel) = shapes
    second = _CONV_TRANSPOSES[len(kernel)](
        rank,
        out,
        tuple(kernel),  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        output_padding=layer.output_padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        bias=bias,
    )
    return [_CONVS[len(kernel)](inner, rank, tuple(points), bias=False), second]  # type: ignore[arg-type]


def _conv(layer: _Ordinary, shape: tuple[int, ...], taken: Sequence[int], index: int, *, bias: bool) -> nn.Module:
    out, inner, *kernel = shape
    carries = [stage == index for stage in taken]
    padding = layer.padding
    return _CONVS[len(kernel)](
        inner * layer.groups,
        out,
        tuple(kernel),  # type: ignore[arg-type]
        stride=tuple(size if carry else 1 for size, carry in zip(layer.stride, carries, strict=True)),  # type: ignore[arg-type]
        padding=padding
        if isinstance(padding, str)
        else tuple(size if carry else 0 for size, carry in zip(padding, carries, strict=True)),  # type: ignore[arg-type]
        dilation=tuple(size if carry else 1 for size, carry in zip(layer.dilation, carries, strict=True)),  # type: ignore[arg-type]
        groups=layer.groups,
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def _carrier(shapes: Sequence[tuple[int, ...]], axis: int, size: int) -> int:
    """Return the stage whose kernel along an axis is the layer's, or the first with any kernel where that is 1."""
    own = (index for index, shape in enumerate(shapes) if shape[2 + axis] == size > 1)
    return next(own, kernel_stage(shapes))


def leave_fast_paths(model: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer out of its fused inference kernel, which reads `linear1.weight` by name."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            whole = isinstance(module.linear1, nn.Linear) and isinstance(module.linear2, nn.Linear)
            if not whole:
                module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
