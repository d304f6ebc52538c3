"""Tensors that torch loaded from a file: those that are not plain, and those that share their elements."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layers import Keep, TensorSpec
from lrzip.formats.files.stream import tensor_bytes
from lrzip.formats.files.views import View, shared_views

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """Return the spec of a tensor; a sparse one counts as if it were dense."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())


def not_plain(tensor: Tensor) -> str | None:
    """Return why a tensor is not a strided array of its elements, or None if it is."""
    if tensor.is_meta:
        return "holds no data (meta)"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return f"sparse, {tensor.layout}"
    if type(tensor) not in _PLAIN:
        return f"a {type(tensor).__name__}"
    return None


def irreplaceable(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors that are not plain, or share stored elements with another one, with the reason."""
    reasons = {name: reason for name, tensor in tensors.items() if (reason := not_plain(tensor))}
    views = {
        name: View(
            tensor.untyped_storage().data_ptr(),
            tensor.element_size(),
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tensor.stride(),
        )
        for name, tensor in tensors.items()
        if name not in reasons and tensor.numel()
    }
    return reasons | {name: f"shared with {other}" for name, other in shared_views(views).items()}


def bytes_of(path: Path, name: str, tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor of a file.

    Raises:
        UnsupportedCheckpoint: The tensor is not plain, so it has no bytes that another format could hold.
    """
    reason = not_plain(tensor)
    if reason:
        raise UnsupportedCheckpoint(f"`{name}` in `{path}` cannot be written in another format: {reason}.")
    return tensor_bytes(tensor.resolve_conj().resolve_neg())


def separate(tensor: Tensor) -> Tensor:
    """Return a tensor with a storage of its own if it is a view of a larger one, which would be stored with it."""
    if not_plain(tensor) or tensor.untyped_storage().nbytes() <= tensor.nbytes:
        return tensor
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def packed(state: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> list[Keep]:
    """Return what contains tensors in a state_dict and is none itself, such as packed weights of quantized modules."""
    found: list[Keep] = []
    for name, value in state.items():
        inner = _tensors_in(value)
        if name not in tensors and inner:
            largest = max(inner, key=Tensor.numel)
            found.append(Keep(str(name), spec_of(str(name), largest), _packed_reason(name, value)))
    return found


def _packed_reason(name: object, value: object) -> str:
    if "_packed_params" in str(name):
        return "packed weight of a quantized layer"
    return f"a {type(value).__name__} of tensors" if not isinstance(value, Tensor) else "its name is not a string"


def _tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple) and depth:
        return [tensor for item in value for tensor in _tensors_in(item, depth - 1)]
    return []
