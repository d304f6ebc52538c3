"""Replace modules of a live network by the chains of a compressed checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from lrzip.errors import LrzipError
from lrzip.factors import Chain, find_chains
from lrzip.formats import open_checkpoint
from lrzip.inference import wrapper_prefix
from lrzip.layers import TensorSpec

Module = TypeVar("Module", bound=nn.Module)

_CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def load_into(model: Module, path: str | Path, *, key: str | None = None, trust: bool = False) -> Module:
    """Load a compressed checkpoint into the dense model it was made from, in place.

    Each layer that the file stores as a chain is replaced by an `nn.Sequential` with the layer's own stride, padding,
    dilation, device and dtype. Then everything is loaded strictly. A dense checkpoint is loaded as it is.

    Args:
        model: An instance of the original class; its weights do not matter.
        path: What `lrzip compress` wrote, in any format.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.

    Returns:
        The same model.

    Raises:
        LrzipError: The file does not fit the model; the model is unchanged.
    """
    with open_checkpoint(Path(path), key=key, trust=trust) as checkpoint:
        names = _match_names(model, checkpoint.tensors())
        specs = {new: checkpoint.tensors()[old].renamed(new) for new, old in names.items()}
        chains = [chain for chain in find_chains(specs) if chain.module and _is_dense_layer(model, chain.module)]
        replacements = {chain.module: sequential(chain, model.get_submodule(chain.module)) for chain in chains}
        _refuse_misfit(path, model, replacements, specs)
        state = {new: checkpoint.read(old) for new, old in names.items()}
    for name, module in replacements.items():
        model.set_submodule(name, module)
    _leave_fast_paths(model)
    model.load_state_dict(state)
    return model


def sequential(chain: Chain, layer: nn.Module) -> nn.Sequential:
    """Return the modules of a chain, with the attributes of the layer that they replace.

    Along each axis, the stage that has the layer's kernel size there takes its stride, padding and dilation; the other
    stages are pointwise in it.

    Args:
        chain: Shapes of the stages.
        layer: nn.Linear, or nn.Conv1d, 2d or 3d without groups.

    Raises:
        LrzipError: The chain does not stand for this layer.
    """
    if isinstance(layer, nn.Linear):
        stages = [_linear(chain, index, layer) for index in range(len(chain.weights))]
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        taken = [_carrier(chain, axis, size) for axis, size in enumerate(layer.kernel_size)]
        stages = [_conv(chain, index, layer, taken) for index in range(len(chain.weights))]
    else:
        raise LrzipError(
            f"`{chain.module}` is {type(layer).__name__} in the model, which a chain cannot replace. "
            f"Compress again with `--skip {chain.module}`."
        )
    stored = (chain.dense_shape, chain.bias is not None)
    expected = (tuple(layer.weight.shape), layer.bias is not None)
    if stored != expected:
        raise LrzipError(f"`{chain.module}` stands for (shape, has bias) {stored}, but the model has {expected} there.")
    return nn.Sequential(*stages).train(layer.training)


def _linear(chain: Chain, index: int, layer: nn.Linear) -> nn.Module:
    out, inner = chain.weights[index].shape
    return nn.Linear(inner, out, bias=_has_bias(chain, index), device=layer.weight.device, dtype=layer.weight.dtype)


def _conv(chain: Chain, index: int, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, taken: list[int]) -> nn.Module:
    out, inner, *kernel = chain.weights[index].shape
    carries = [stage == index for stage in taken]
    padding = layer.padding
    return _CONVS[len(kernel)](
        inner,
        out,
        tuple(kernel),  # type: ignore[arg-type]
        stride=tuple(size if carry else 1 for size, carry in zip(layer.stride, carries, strict=True)),  # type: ignore[arg-type]
        padding=padding
        if isinstance(padding, str)
        else tuple(size if carry else 0 for size, carry in zip(padding, carries, strict=True)),  # type: ignore[arg-type]
        dilation=tuple(size if carry else 1 for size, carry in zip(layer.dilation, carries, strict=True)),  # type: ignore[arg-type]
        bias=_has_bias(chain, index),
        padding_mode=layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )


def _carrier(chain: Chain, axis: int, size: int) -> int:
    """Return the first stage whose kernel along an axis is the layer's."""
    return next((index for index, spec in enumerate(chain.weights) if spec.shape[2 + axis] == size), 0)


def _has_bias(chain: Chain, index: int) -> bool:
    return chain.bias is not None and index == len(chain.weights) - 1


def _match_names(model: nn.Module, tensors: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Return the file's name of each tensor by the model's, without wrapper prefixes unless the model has them too."""
    expected = model.state_dict().keys()
    prefixes = ["", *dict.fromkeys(wrapper_prefix(tensors, trainer=trainer) for trainer in (False, True))]

    def known(prefix: str) -> int:
        names = {name.removeprefix(prefix) for name in tensors}
        return len(names & expected)

    prefix = max(prefixes, key=known)
    return {name.removeprefix(prefix): name for name in tensors if name != "n_averaged" or name in expected}


def _is_dense_layer(model: nn.Module, name: str) -> bool:
    """Tell whether the model has one layer there, and not an `nn.Sequential` of its own."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return False
    return isinstance(getattr(module, "weight", None), Tensor)


def _refuse_misfit(
    path: str | Path, model: nn.Module, replacements: Mapping[str, nn.Module], specs: Mapping[str, TensorSpec]
) -> None:
    """Raise an error at the first tensor in which the file and the model, after replacement, differ."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, module in replacements.items():
        layer = model.get_submodule(name)
        if any(users[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
            raise LrzipError(
                f"`{name}` shares its weight with another layer of the model. Compress with `--skip {name}`."
            )
        for leaf in layer.state_dict():
            del expected[f"{name}.{leaf}"]
        expected |= {f"{name}.{leaf}": tuple(tensor.shape) for leaf, tensor in module.state_dict().items()}
    found = {name: spec.shape for name, spec in specs.items()}
    for name in [*expected, *found]:
        counter = name.endswith("num_batches_tracked") and name not in found  # files older than the counter lack it
        if found.get(name) != expected.get(name) and not counter:
            there = f"has shape {found[name]}" if name in found else "is missing"
            wanted = f"takes {expected[name]}" if name in expected else "has no such tensor"
            raise LrzipError(f"`{path}` does not fit the model: `{name}` {there}, the model {wanted}.")


def _leave_fast_paths(model: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer out of its fused inference kernel, which reads `linear1.weight` by name."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            whole = isinstance(module.linear1, nn.Linear) and isinstance(module.linear2, nn.Linear)
            if not whole:
                module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
