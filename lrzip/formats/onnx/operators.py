"""Multiply-accumulates of ONNX operators, from the shapes of their inputs and outputs.

Products of matrices, convolutions, attention and recurrent layers are counted as in PyTorch; element-wise operations
are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
_MICROSOFT = "com.microsoft"
_OWN_DOMAINS = ("", "ai.onnx.ml")


class UnknownShapeError(Exception):
    """A shape that a count depends on is not known, or does not fit the operator."""


@dataclass(frozen=True)
class Call:
    """A node with the shapes of its inputs and outputs.

    Attributes:
        operator: Name of the operator.
        domain: Its domain, "" for that of ONNX.
        attributes: Values of its attributes.
        inputs: Names of its inputs, "" for those that are absent.
        outputs: Names of its outputs.
        shapes: Shapes by name, as far as they are known.
    """

    operator: str
    domain: str
    attributes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    shapes: Mapping[str, Shape]

    def has(self, index: int) -> bool:
        """Return whether there is an input at a position."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def input(self, index: int) -> Shape:
        """Return the shape of an input."""
        return self._shape(self.inputs, index)

    def output(self, index: int = 0) -> Shape:
        """Return the shape of an output."""
        return self._shape(self.outputs, index)

    def _shape(self, names: Sequence[str], index: int) -> Shape:
        shape = self.shapes.get(names[index]) if index < len(names) else None
        if shape is None or min(shape, default=0) < 0:
            raise UnknownShapeError
        return shape


def is_known(domain: str, operator: str) -> bool:
    """Return whether it is known what an operator multiplies: by a formula, or nothing."""
    if (domain, operator) in _FORMULAS:
        return True
    return operator not in _NO_FORMULA if domain in _OWN_DOMAINS else domain == _MICROSOFT and operator in _ELEMENTWISE


def multiplies(domain: str, operator: str) -> bool:
    """Return whether an operator has a formula."""
    return (domain, operator) in _FORMULAS


def macs_of(call: Call) -> int:
    """Return the multiply-accumulates of a call of an operator that has a formula.

    Raises:
        UnknownShapeError: A shape is not known, or does not fit the operator.
    """
    try:
        return _FORMULAS[call.domain, call.operator](call)
    except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:  # shapes that are not the operator's
        raise UnknownShapeError from error


def _product(left: Shape, right: Shape) -> int:
    """Count a product of NumPy's matmul, where a vector is one row on the left and one column on the right."""
    inner = right[-2] if len(right) > 1 else right[0]
    if left[-1] != inner:
        raise UnknownShapeError
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    return prod(_broadcast(left[:-2], right[:-2])) * rows * inner * columns


def _broadcast(first: Shape, second: Shape) -> Shape:
    count = max(len(first), len(second))
    first, second = ((1,) * (count - len(shape)) + shape for shape in (first, second))
    if any(a != b and 1 not in (a, b) for a, b in zip(first, second, strict=True)):
        raise UnknownShapeError
    return tuple(b if a == 1 else a for a, b in zip(first, second, strict=True))


def _matmul(left: int = 0, right: int = 1) -> Callable[[Call], int]:
    return lambda call: _product(call.input(left), call.input(right))


def _gemm(left: int = 0, right: int = 1) -> Callable[[Call], int]:
    def count(call: Call) -> int:
        first, second = call.input(left), call.input(right)
        if len(first) != 2 or len(second) != 2:
            raise UnknownShapeError
        first = first[::-1] if call.attributes.get("transA") else first
        return _product(first, second[::-1] if call.attributes.get("transB") else second)

    return count


def _fused_matmul(call: Call) -> int:
    sides = []
    for index, side in enumerate("AB"):
        shape = call.input(index)
        if call.attributes.get(f"transBatch{side}"):  # the first axis of the batch comes before the last one
            shape = (*shape[1:-1], shape[0], shape[-1])
        transposed = call.attributes.get(f"trans{side}") and len(shape) > 1
        sides.append((*shape[:-2], shape[-1], shape[-2]) if transposed else shape)
    return _product(*sides)


def _packed_matmul(call: Call) -> int:
    """Count a product with a packed matrix of K rows and N columns."""
    if call.input(0)[-1] != call.attributes["K"]:
        raise UnknownShapeError
    return prod(call.input(0)) * int(call.attributes["N"])


def _convolution(weight: int = 1) -> Callable[[Call], int]:
    def count(call: Call) -> int:
        x, kernel = call.input(0), call.input(weight)
        if x[1] != kernel[1] * call.attributes.get("group", 1):
            raise UnknownShapeError
        return x[0] * prod(call.output()[2:]) * prod(kernel)

    return count


def _channels_last_convolution(weight: int) -> Callable[[Call], int]:
    return lambda call: prod(call.output()[:-1]) * prod(call.input(weight))


def _transposed_convolution(call: Call) -> int:
    x, kernel = call.input(0), call.input(1)
    if x[1] != kernel[0]:
        raise UnknownShapeError
    return x[0] * prod(x[2:]) * prod(kernel)


def _distances(call: Call) -> int:
    return prod(call.input(0)) * call.input(1)[0]


def _causal_convolution(call: Call) -> int:
    return prod(call.output()) * call.input(1)[-1]


def _recurrent(call: Call) -> int:
    """Count LSTM, GRU and RNN: the matrices of all directions are applied at each step of each sequence."""
    x = call.input(0)
    return x[0] * x[1] * (prod(call.input(1)) + prod(call.input(2)))


def _einsum(call: Call) -> int:
    """Count products from left to right, as PyTorch and onnxruntime compute them.

    Two tensors without a common axis that is summed are multiplied element by element.
    """
    equation = call.attributes["equation"]
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    given, arrow, result = text.partition("->")
    sizes: dict[str, int] = {}
    terms = []
    for index, term in enumerate(given.split(",")):
        axes = _axes(term, len(call.input(index)))
        terms.append(axes)
        for axis, size in zip(axes, call.input(index), strict=True):
            if sizes.setdefault(axis, size) != size and 1 not in (size, sizes[axis]):
                raise UnknownShapeError
            sizes[axis] = max(size, sizes[axis])
    every = [axis for axes in terms for axis in axes]
    kept = set(_axes(result, len(every))) if arrow else {a for a in every if every.count(a) == 1 or a.startswith(".")}
    return _contracted(terms, kept, sizes)


def _axes(term: str, rank: int) -> list[str]:
    """Return the axes of a term of an equation; those of its ellipsis have names that count from the last one."""
    before, dots, after = term.partition("...")
    hidden = max(rank - len(before) - len(after), 0) if dots else 0
    return [*before, *(f".{number}" for number in reversed(range(hidden))), *after]


def _contracted(terms: Sequence[Sequence[str]], kept: set[str], sizes: Mapping[str, int]) -> int:
    total, left = 0, set(terms[0])
    for number, term in enumerate(terms[1:], 1):
        right = set(term)
        needed = kept.union(*terms[number + 1 :])
        left, right = left & (needed | right), right & (needed | left)  # others are summed first
        both = left | right
        if both - needed:
            total += prod(sizes[axis] for axis in both)
        left = both & needed
    return total


def _attention(call: Call) -> int:
    """Count the attention of ONNX, with heads as an axis of their own or in the features."""
    query, key = call.input(0), call.input(1)
    length = key[-2] + (call.input(4)[-2] if call.has(4) else 0)
    return prod(query[:-1]) * length * (query[-1] + call.output()[-1])


def _projected_attention(past: int) -> Callable[[Call], int]:
    """Return the formula of attention that projects its input by one matrix for query, key and value.

    Args:
        past: Position of earlier keys and values (2, batch, heads, length, features).
    """

    def count(call: Call) -> int:
        (batch, steps, _), weight = call.input(0), call.input(1)
        length = steps + (call.input(past)[3] if call.has(past) else 0)
        widths: list[int] = call.attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
        return batch * steps * (prod(weight) + length * (widths[0] + widths[2]))

    return count


def _multi_head_attention(call: Call) -> int:
    """Count attention without projections, whose query, key and value may be packed into one tensor."""
    query, out = call.input(0), call.output()
    length = query[1]
    if call.has(1):
        key = call.input(1)
        length = key[2] if len(key) == 4 else key[1]  # (batch, heads, length, features) or (batch, length, …)
    length += call.input(6)[2] if call.has(6) else 0
    width = query[-1] if len(query) == 3 else query[2] * query[4]
    return query[0] * query[1] * length * (width + out[-1])


def _grouped_query_attention(call: Call) -> int:
    batch, steps, width = call.output()
    return 2 * batch * steps * width * call.output(1)[2]


def _experts(call: Call) -> int:
    """Count a mixture of experts, of which each position uses k."""
    matrices = [call.input(index) for index in (2, 4, 6) if call.has(index)]
    positions = prod(call.input(0)[:-1])
    return positions * int(call.attributes.get("k", 1)) * sum(prod(shape[1:]) for shape in matrices)


def _linear_model(call: Call) -> int:
    return call.input(0)[0] * len(call.attributes["coefficients"])


_FORMULAS: Mapping[tuple[str, str], Callable[[Call], int]] = {
    ("", "MatMul"): _matmul(),
    ("", "MatMulInteger"): _matmul(),
    ("", "QLinearMatMul"): _matmul(0, 3),
    ("", "Gemm"): _gemm(),
    ("", "Einsum"): _einsum,
    ("", "Conv"): _convolution(),
    ("", "ConvInteger"): _convolution(),
    ("", "QLinearConv"): _convolution(3),
    ("", "DeformConv"): _convolution(),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "CausalConvWithState"): _causal_convolution,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("", "Attention"): _attention,
    ("ai.onnx.preview", "FlexAttention"): _attention,
    ("ai.onnx.ml", "LinearClassifier"): _linear_model,
    ("ai.onnx.ml", "LinearRegressor"): _linear_model,
    (_MICROSOFT, "FusedMatMul"): _fused_matmul,
    (_MICROSOFT, "TransposeMatMul"): _fused_matmul,
    (_MICROSOFT, "FusedMatMulActivation"): _fused_matmul,
    (_MICROSOFT, "GemmFastGelu"): _matmul(),
    (_MICROSOFT, "SparseToDenseMatMul"): _fused_matmul,
    (_MICROSOFT, "MatMulInteger16"): _matmul(),
    (_MICROSOFT, "MatMulIntegerToFloat"): _matmul(),
    (_MICROSOFT, "DynamicQuantizeMatMul"): _matmul(),
    (_MICROSOFT, "MatMulNBits"): _packed_matmul,
    (_MICROSOFT, "MatMulBnb4"): _packed_matmul,
    (_MICROSOFT, "FusedGemm"): _gemm(),
    (_MICROSOFT, "GemmFloat8"): _gemm(),
    (_MICROSOFT, "QGemm"): _gemm(0, 3),
    (_MICROSOFT, "FusedConv"): _convolution(),
    (_MICROSOFT, "QLinearConv"): _convolution(3),
    (_MICROSOFT, "NhwcConv"): _channels_last_convolution(1),
    (_MICROSOFT, "NhwcFusedConv"): _channels_last_convolution(1),
    (_MICROSOFT, "ConvTransposeWithDynamicPads"): _transposed_convolution,
    (_MICROSOFT, "CDist"): _distances,
    (_MICROSOFT, "DynamicQuantizeLSTM"): _recurrent,
    (_MICROSOFT, "Attention"): _projected_attention(4),
    (_MICROSOFT, "QAttention"): _projected_attention(8),
    (_MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
    (_MICROSOFT, "GroupQueryAttention"): _grouped_query_attention,
    (_MICROSOFT, "MoE"): _experts,
}
_NO_FORMULA = {"LinearAttention"}
# Operators of onnxruntime that multiply no matrices.
_PLAIN = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BifurcationDetector BitmaskBiasDropout BitmaskDropout
    BranchwiseRMSNorm ComplexMul ComplexMulConj CropAndResize DequantizeBFP DequantizeLinear DequantizeWithOrder
    DynamicTimeWarping EmbedLayerNormalization ExpandDims FastGelu GatedAdd GatedRMSNorm GatherBlockQuantized GatherND
    GatherPacked Gelu GemmaRotaryEmbedding GridSample GroupNorm Inverse Irfft IsAllFinite MRotaryEmbedding
    MaxpoolWithMask MoEGroupRouter MulInteger MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcMaxPool Pad
    QEmbedLayerNormalization QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu
    QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QOrderedGelu QOrderedLayerNormalization
    QuantizeBFP QuantizeLinear QuantizeWithOrder QuickGelu RMSNormRotary Range ReduceSumInteger RelativePositionBias
    RemovePadding RestorePadding Rfft RotaryEmbedding SampleOp ScaledSiLU SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization SwiGLU Tokenizer TorchEmbedding Trilu UnfoldTensor Unique
"""
_ELEMENTWISE = frozenset(_PLAIN.split())
