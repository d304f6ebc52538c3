"""Replace modules of a live network by structures."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.factors import GroupFactors
from lrzip.core.kinds import ATTENTION
from lrzip.core.plan import Plan
from lrzip.core.stored import Stored
from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, bias_name, biased_part, stages, tensor_names
from lrzip.networks import modules
from lrzip.networks.architecture import module_info
from lrzip.networks.attention import SplitAttention
from lrzip.networks.transformers_names import is_pretrained

_Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def replacement(stored: Stored, model: nn.Module) -> tuple[str, nn.Module]:
    """Return the module that represents a structure in a network, where its tensors have their stored names.

    Returns:
        The path of a module of `model`, and the module to put there.

    Raises:
        LrzipError: The structure does not replace the module that is there.
    """
    if stored.replaced.kind is not ATTENTION:
        layer = model.get_submodule(stored.module)
        built = build(stored, layer)
        if is_pretrained(model):
            # Models of transformers ask their layers for `weight.dtype`. The buffer has it, and is stored nowhere.
            built.register_buffer("weight", layer.get_parameter("weight").new_empty(0), persistent=False)
        return stored.module, built
    path = stored.module.removesuffix("in_proj").removesuffix(".")
    attention = model.get_submodule(path)
    if not isinstance(attention, nn.MultiheadAttention):
        raise LrzipError(f"`{path}` is {type(attention).__name__} in the model, not nn.MultiheadAttention.")
    if stored.replaced.shape != tuple(attention.in_proj_weight.shape):
        raise LrzipError(
            f"`{stored.module}` stands for {stored.replaced.shape}, but the model has other projections there."
        )
    return path, SplitAttention(attention, stages(stored.structure)[-1].shape[1])


def build(stored: Stored, layer: nn.Module) -> nn.Module:
    """Return the module of a structure, with the attributes of the layer that it replaces.

    Args:
        stored: The structure.
        layer: nn.Linear, nn.Embedding, a convolution, a transposed convolution without groups, or transformers' Conv1D.

    Raises:
        LrzipError: The structure does not replace this layer.
    """
    info = module_info(layer)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if info.kind is None or info.reason or not isinstance(weight, Tensor):
        raise LrzipError(
            f"`{stored.module}` is {type(layer).__name__} in the model, which a chain cannot replace. "
            f"Compress again with `skip={stored.module}`."
        )
    found = (stored.replaced.shape, stored.bias is not None, stored.replaced.groups)
    expected = (tuple(weight.shape), bias is not None, info.groups)
    if found != expected:
        raise LrzipError(
            f"`{stored.module}` stands for (shape, has bias, groups) {found}, but the model has {expected} there."
        )
    built = _Builder(layer, biased_part(stored.structure)[1] if bias is not None else None).module(stored.structure)
    return built.to(weight.device, weight.dtype).train(layer.training)


class _Builder:
    """Builds modules with the attributes of a layer; one part gets a bias if the layer has one."""

    def __init__(self, layer: nn.Module, biased: Stage | Reshape | None) -> None:
        self._layer, self._biased = layer, biased

    def module(self, structure: Structure) -> nn.Module:
        """Return the module of a structure."""
        if isinstance(structure, Chain):
            return nn.Sequential(*map(self.module, structure.parts))
        if isinstance(structure, Stage):
            return self._stage(structure, bias=structure is self._biased)
        if isinstance(structure, Select):
            return modules.Select(structure.count, 1 if isinstance(self._layer, _Convolution) else -1)
        if isinstance(structure, Reshape):
            sizes = (structure.view, structure.order, structure.shape)
            return modules.Reshape(structure.axes, *sizes, bias=structure is self._biased)
        return modules.Sum([self.module(branch) for branch in structure.branches])

    def _stage(self, stage: Stage, *, bias: bool) -> nn.Module:
        if stage.kind.is_convolution:
            return self._convolution(stage, bias=bias)
        if not stage.kind.is_indexed:
            return nn.Linear(stage.inputs, stage.outputs, bias=bias)
        layer = self._layer
        assert isinstance(layer, nn.Embedding), "only embeddings are replaced by embeddings"
        options: dict[str, Any] = {"scale_grad_by_freq": layer.scale_grad_by_freq, "sparse": layer.sparse}
        # The row of the padding index is zero here too, and so is the output of the stages that follow.
        return nn.Embedding(stage.inputs, stage.outputs, layer.padding_idx, **options)

    def _convolution(self, stage: Stage, *, bias: bool) -> nn.Module:
        layer = self._layer
        assert isinstance(layer, _Convolution), "only convolutions are replaced by convolutions"
        options: dict[str, Any] = {
            "stride": _along(stage, layer.stride, 1),
            "padding": layer.padding if isinstance(layer.padding, str) else _along(stage, layer.padding, 0),
            "dilation": _along(stage, layer.dilation, 1),
            "groups": stage.groups,
            "bias": bias,
        }
        kernel = stage.kind.kernel(stage.shape)
        if stage.kind.is_transposed_convolution:
            options["output_padding"] = _along(stage, layer.output_padding, 0)
            made: nn.Module = _TRANSPOSED[len(kernel)](stage.inputs, stage.outputs, kernel, **options)
        else:
            options["padding_mode"] = layer.padding_mode
            made = _CONVOLUTIONS[len(kernel)](stage.inputs, stage.outputs, kernel, **options)
        return made


def _along(stage: Stage, sizes: Sequence[int], other: int) -> tuple[int, ...]:
    """Return the sizes of a layer along the axes that a stage takes from it, and `other` along the rest."""
    return tuple(size if takes else other for size, takes in zip(sizes, stage.axes, strict=True))


def replace_layer(model: nn.Module, stored: Stored, weights: Sequence[Tensor]) -> nn.Module:
    """Replace a module of a network, in place, by a structure with these weights and with the layer's own bias.

    Returns:
        The network, or the new module if the network is the layer itself.
    """
    weight = model.get_parameter(stored.dense_name)
    bias = model.get_parameter(stored.dense_bias_name) if stored.bias else None
    path, module = replacement(stored, model)
    inner = module.get_submodule(stored.module.removeprefix(path).removeprefix("."))
    with torch.no_grad():
        for name, value in zip(tensor_names(stored.structure), weights, strict=True):
            inner.get_submodule(name.rpartition(".")[0]).state_dict(keep_vars=True)[name.rpartition(".")[2]].copy_(
                value
            )
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(weight.requires_grad and not name.endswith("bias"))
    if bias is not None:
        inner.get_submodule(bias_name(stored.structure).rpartition(".")[0]).register_parameter("bias", bias)
    if not path:
        return module
    model.set_submodule(path, module)
    return model


def assemble(
    model: nn.Module, plan: Plan, found: Mapping[str, GroupFactors], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Replace the layers of a plan by structures, and change other tensors, in place.

    Args:
        model: The network.
        plan: Plan of its layers.
        found: Factors of each decision, by the name of its group.
        tensors: New values of other tensors, by their name in the network.

    Returns:
        The network, or the new module if the network is a layer itself.
    """
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    result = model
    for decision in plan.factorize:
        made = found[decision.group.name]
        for replacement, factors in zip(decision.replacements, made.members, strict=True):
            layer = replacement.layer
            result = replace_layer(result, replacement.stored(layer.path, decision.dtype), factors.weights)
        for name, tensor in made.others.items():
            resize(result, name.removeprefix(decision.layer.module.removesuffix(decision.layer.path)), tensor)
    leave_fast_paths(result)
    return result


def resize(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of a network by a tensor of another shape."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = module.state_dict(keep_vars=True)[leaf]
    value = tensor.to(old.device, old.dtype)
    if isinstance(old, nn.Parameter):
        module.register_parameter(leaf, nn.Parameter(value, old.requires_grad))
    else:
        module.register_buffer(leaf, value)


def leave_fast_paths(model: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer out of its fused inference kernel, which reads `linear1.weight` by name."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            is_dense = isinstance(module.linear1, nn.Linear) and isinstance(module.linear2, nn.Linear)
            if not is_dense:
                module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
