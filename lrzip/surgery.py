"""Replace modules of a live network by the chains of a compressed checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from lrzip.attention import PROJECTIONS, SplitAttention
from lrzip.errors import LrzipError
from lrzip.factors import Chain, dense_shape, find_chains, groups_of
from lrzip.formats import open_checkpoint
from lrzip.inference import match
from lrzip.modules import Architecture, known

Module = TypeVar("Module", bound=nn.Module)

_Ordinary: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_ORDINARY = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = dict(enumerate(_ORDINARY, 1))
_CONV_TRANSPOSES = dict(enumerate(_TRANSPOSED, 1))


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
        architecture = Architecture.of(model)
        specs = match(checkpoint.path, checkpoint.tensors(), architecture)
        chains = find_chains({name: spec.renamed(name) for name, spec in specs.items()}, architecture.kinds)
        replacements = dict(replacement(chain, model) for chain in chains)
        state = {name: checkpoint.read(spec.name) for name, spec in specs.items()}
        tied = {name: other for name, other in architecture.shared.items() if name not in state and other in state}
        state |= {name: state[other] for name, other in tied.items()}
    for name, module in replacements.items():
        model.set_submodule(name, module)
    leave_fast_paths(model)
    model.load_state_dict(state)
    return model


def replacement(chain: Chain, model: nn.Module) -> tuple[str, nn.Module]:
    """Return what has to stand where in a network so that a chain's weights have their names in it.

    Returns:
        The path of a module of `model`, and a module to put there.
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

    Along each axis, the stage that has the layer's kernel size there takes its stride, padding and dilation; the other
    stages are pointwise in it.

    Args:
        chain: Shapes of the stages.
        layer: nn.Linear, nn.Embedding, a convolution, a transposed one without groups, or transformers' Conv1D.

    Raises:
        LrzipError: The chain does not stand for this layer.
    """
    what = known(layer)
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
    """Return the first stage whose kernel along an axis is the layer's."""
    return next((index for index, shape in enumerate(shapes) if shape[2 + axis] == size), 0)


def leave_fast_paths(model: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer out of its fused inference kernel, which reads `linear1.weight` by name."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            whole = isinstance(module.linear1, nn.Linear) and isinstance(module.linear2, nn.Linear)
            if not whole:
                module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
