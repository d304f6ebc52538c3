"""Multiply-accumulates of PyTorch operators that torch.utils.flop_counter does not know.

The formulas return floating-point operations, as those of PyTorch do: two for each multiply-accumulate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import sdpa_flop_count

Shape: TypeAlias = Sequence[int]
Formula: TypeAlias = Callable[..., int]


def formulas() -> Mapping[Any, Formula]:
    """Return the formulas by operator, for those operators that this version of PyTorch has."""
    found = {_operator(name): formula for formula, names in _FORMULAS.items() for name in names.split()}
    return {operator: formula for operator, formula in found.items() if operator is not None}


def _operator(name: str) -> Any:
    namespace, _, operator = name.rpartition(".")
    return getattr(getattr(torch.ops, namespace or "aten"), operator, None)


def _features(x: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Count a product of features (…, k) with a matrix of any layout, of shape (k, n) → (…, n)."""
    return 2 * prod(x) * out_shape[-1]


def _vector(x: Shape, *_: Any, **__: Any) -> int:
    """Count a product whose left side (m, k) meets each element of the right side (k,) once."""
    return 2 * prod(x)


def _added_vector(_bias: Shape, x: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(x)


def _added_products(_bias: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return 2 * prod(left) * right[-1]


def _distances(left: Shape, right: Shape, **_: Any) -> int:
    return 2 * prod(left) * right[-2]


def _grouped(left: Shape, right: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Count products of experts, where rows or columns, or the sums, are divided among the experts."""
    del right
    return 2 * min(prod(left) * out_shape[-1], prod(out_shape) * left[-1])


def _convolution(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * x[0] * prod(out_shape[2:]) * prod(weight)


def _transposed_convolution(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * x[0] * prod(x[2:]) * prod(weight)


def _time_first_convolution(_x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * prod(out_shape[:2]) * prod(weight)


def _recurrent_layer(x: Shape, inputs: Shape, hidden: Shape, *_: Any, **__: Any) -> int:
    """Count one direction of one layer: both matrices are applied at each step of each sequence."""
    return 2 * prod(x[:-1]) * (prod(inputs) + prod(hidden))


def _recurrent_layers(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) > 1)


def _trilinear(
    first: Shape, second: Shape, third: Shape, axes1: Shape, axes2: Shape, axes3: Shape, *_: Any, **__: Any
) -> int:
    """Count one multiply-accumulate for each element of the product of all three, expanded to their common shape."""
    expanded: list[list[int]] = []
    for shape, axes in zip((first, second, third), (axes1, axes2, axes3), strict=True):
        rest: Iterator[int] = iter(shape)
        expanded.append([1 if axis in axes else next(rest) for axis in range(len(shape) + len(axes))])
    sizes: list[int] = [max(found) for found in zip(*expanded, strict=True)]
    return 2 * prod(sizes)


def _attention(query: Shape, key: Shape, _value: Shape, width: int, *_: Any, **__: Any) -> int:
    """Count a module of attention: four projections, the scores and the weighted sums."""
    queries, keys = prod(query[:-1]), prod(key[:-1])
    return 2 * (2 * queries * width**2 + 2 * keys * width**2 + 2 * queries * key[1] * width)


def _encoder_layer(x: Shape, width: int, *arguments: Any, **_: Any) -> int:
    first, second = (shape for shape in arguments[-_FEEDFORWARD:] if isinstance(shape, torch.Size) and len(shape) == 2)
    return _attention(x, x, x, width) + 2 * prod(x[:-1]) * (prod(first) + prod(second))


def _scores_and_sums(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _nothing(*_: Any, **__: Any) -> int:
    return 0


# The arguments of an encoder layer after those of its norms: two weights and biases, a mask and its type.
_FEEDFORWARD = 6
_FORMULAS: Mapping[Formula, str] = {
    _features: "_int_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
    "_weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit mkldnn_linear mkldnn._linear_pointwise "
    "mkl._mkl_linear quantized.linear quantized.linear_relu quantized.linear_dynamic quantized.linear_relu_dynamic "
    "quantized.linear_dynamic_fp16 quantized.linear_relu_dynamic_fp16 quantized.linear_leaky_relu "
    "quantized.linear_tanh onednn.qlinear_pointwise",
    _vector: "mv dot vdot",
    _added_vector: "addmv addmv_",
    _added_products: "addmm_ addbmm addbmm_ baddbmm_",
    _distances: "_euclidean_dist",
    _grouped: "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2",
    _convolution: "_conv_depthwise2d conv_depthwise3d slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d "
    "mkldnn_convolution mkldnn._convolution_pointwise miopen_convolution miopen_depthwise_convolution "
    "miopen_convolution_relu cudnn_convolution_relu cudnn_convolution_add_relu _mps_convolution "
    "_nnpack_spatial_convolution torchvision.deform_conv2d",
    _transposed_convolution: "slow_conv_transpose2d slow_conv_transpose3d cudnn_convolution_transpose "
    "miopen_convolution_transpose _mps_convolution_transpose mkldnn._convolution_transpose_pointwise",
    _time_first_convolution: "conv_tbc",
    _recurrent_layer: "mkldnn_rnn_layer",
    _recurrent_layers: "_cudnn_rnn miopen_rnn",
    _trilinear: "_trilinear",
    _attention: "_native_multi_head_attention",
    _encoder_layer: "_transformer_encoder_layer_fwd",
    _scores_and_sums: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable "
    "_scaled_dot_product_attention_math_for_mps",
    # Element-wise parts of cells, whose products are separate operators, and changes of layouts.
    _nothing: "_thnn_fused_lstm_cell _thnn_fused_gru_cell",
}
