"""Operators of ONNX count as their definitions say."""

from typing import Any

import onnx
import pytest

from lrzip.formats.onnx.operators import _ELEMENTWISE, _FORMULAS, Call, UnknownShapeError, is_known, macs_of, multiplies

MS = "com.microsoft"
Q = ((), ())  # scale and zero point


def call(
    operator: str, *inputs: tuple[int, ...] | None, out: Any = (), domain: str = "", out1: Any = (), **attributes: Any
) -> Call:
    names = [f"i{number}" if shape is not None else "" for number, shape in enumerate(inputs)]
    shapes = {name: shape for name, shape in zip(names, inputs, strict=True) if shape is not None}
    return Call(operator, domain, attributes, names, ["o0", "o1"], {**shapes, "o0": out, "o1": out1})


CASES: dict[str, tuple[Call, int]] = {
    "matmul": (call("MatMul", (2, 7, 3), (3, 4)), 2 * 7 * 3 * 4),
    "matmul of stacks": (call("MatMul", (2, 1, 7, 3), (5, 3, 4)), 2 * 5 * 7 * 3 * 4),
    "vector and matrix": (call("MatMul", (3,), (3, 4)), 3 * 4),
    "matrix and vector": (call("MatMul", (7, 3), (3,)), 7 * 3),
    "vectors": (call("MatMul", (3,), (3,)), 3),
    "integers": (call("MatMulInteger", (7, 3), (3, 4)), 7 * 3 * 4),
    "quantized matmul": (call("QLinearMatMul", (7, 3), *Q, (3, 4), *Q, *Q), 7 * 3 * 4),
    "gemm": (call("Gemm", (7, 3), (3, 4)), 7 * 3 * 4),
    "gemm, transposed": (call("Gemm", (3, 7), (4, 3), transA=1, transB=1), 7 * 3 * 4),
    "conv": (call("Conv", (2, 6, 9, 9), (8, 3, 3, 3), out=(2, 8, 7, 7), group=2), 2 * 49 * 8 * 3 * 9),
    "conv of integers": (call("ConvInteger", (1, 3, 9), (8, 3, 3), out=(1, 8, 7)), 7 * 8 * 3 * 3),
    "quantized conv": (call("QLinearConv", (1, 3, 9), *Q, (8, 3, 3), *Q, *Q, out=(1, 8, 7)), 7 * 8 * 3 * 3),
    "deformable conv": (call("DeformConv", (1, 3, 9, 9), (8, 3, 3, 3), (), out=(1, 8, 7, 7)), 49 * 8 * 3 * 9),
    "transposed conv": (
        call("ConvTranspose", (2, 6, 5, 5), (6, 4, 2, 2), out=(2, 8, 10, 10), group=2),
        2 * 25 * 6 * 16,
    ),
    "causal conv": (call("CausalConvWithState", (2, 6, 9), (6, 1, 4), out=(2, 6, 9)), 2 * 6 * 9 * 4),
    "lstm": (call("LSTM", (5, 2, 4), (1, 12, 4), (1, 12, 3)), 5 * 2 * 12 * (4 + 3)),
    "two directions": (call("GRU", (5, 2, 4), (2, 9, 4), (2, 9, 3)), 2 * 5 * 2 * 9 * (4 + 3)),
    "rnn, batch first": (call("RNN", (2, 5, 4), (1, 3, 4), (1, 3, 3), layout=1), 2 * 5 * 3 * (4 + 3)),
    "einsum": (call("Einsum", (2, 3, 4), (4, 5), equation=b"bti,io->bto"), 2 * 3 * 4 * 5),
    "implicit einsum": (call("Einsum", (3, 4), (4, 5), equation="ij, jk"), 3 * 4 * 5),
    "ellipsis": (call("Einsum", (6, 2, 3, 4), (2, 4, 5), equation="...ij,...jk->...ik"), 6 * 2 * 3 * 4 * 5),
    "einsum of three": (call("Einsum", (2, 3), (3, 4), (2, 4), equation="bi,ij,bj->b"), 2 * 3 * 4 + 2 * 4),
    "elementwise einsum": (call("Einsum", (2, 3), (2, 3), equation="bi,bi->bi"), 0),
    "summed first": (call("Einsum", (2, 3, 7), (2, 4), equation="bik,bj->bij"), 0),
    "attention": (call("Attention", *((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 3)), out=(1, 2, 5, 3)), 2 * 5 * 6 * 7),
    "attention in features": (call("Attention", *((1, 5, 8), (1, 6, 8), (1, 6, 8)), out=(1, 5, 8)), 5 * 6 * 16),
    "attention with a past": (
        call("Attention", *((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4)), None, (1, 2, 3, 4), out=(1, 2, 5, 4)),
        2 * 5 * (6 + 3) * 8,
    ),
    "linear classifier": (call("LinearClassifier", (7, 3), domain="ai.onnx.ml", coefficients=[0.0] * 6), 7 * 6),
    "fused matmul": (call("FusedMatMul", (3, 7), (4, 3), domain=MS, transA=1, transB=1), 7 * 3 * 4),
    "fused matmul, batch inside": (call("FusedMatMul", (7, 2, 3), (2, 3, 4), domain=MS, transBatchA=1), 2 * 7 * 3 * 4),
    "packed matmul": (call("MatMulNBits", (2, 7, 32), (4, 1, 16), domain=MS, K=32, N=4), 2 * 7 * 32 * 4),
    "quantized gemm": (call("QGemm", (7, 3), *Q, (4, 3), *Q, domain=MS, transB=1), 7 * 3 * 4),
    "fused conv": (call("FusedConv", (1, 3, 9), (8, 3, 3), out=(1, 8, 7), domain=MS), 7 * 8 * 3 * 3),
    "conv, channels last": (call("NhwcConv", (1, 9, 9, 3), (8, 3, 3, 3), out=(1, 7, 7, 8), domain=MS), 49 * 8 * 27),
    "projected attention": (
        call("Attention", (2, 5, 8), (8, 24), domain=MS, num_heads=2),
        2 * 5 * 8 * 24 + 2 * 2 * 5 * 5 * 8,
    ),
    "multi-head attention": (
        call("MultiHeadAttention", (2, 5, 8), (2, 6, 8), (2, 6, 8), out=(2, 5, 8), domain=MS),
        2 * 5 * 6 * 16,
    ),
    "packed attention": (call("MultiHeadAttention", (2, 5, 4, 3, 2), out=(2, 5, 8), domain=MS), 2 * 5 * 5 * 16),
    "grouped queries": (
        call("GroupQueryAttention", (2, 1, 8), (2, 1, 4), (2, 1, 4), out=(2, 1, 8), out1=(2, 1, 7, 4), domain=MS),
        2 * 2 * 7 * 8,
    ),
    "experts": (call("MoE", (7, 3), (7, 4), (4, 3, 5), None, (4, 5, 3), domain=MS, k=2), 7 * 2 * (15 + 15)),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_count_by_their_definition(name: str) -> None:
    given, expected = CASES[name]
    assert macs_of(given) == expected


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_counted_from_unknown_shapes(name: str) -> None:
    """Without a shape that a count depends on there is none; with it, and a size of -1 in it, neither."""
    given, expected = CASES[name]
    for missing in given.shapes:
        rest = {key: shape for key, shape in given.shapes.items() if key != missing}
        negative = {**given.shapes, missing: (-1,) * len(given.shapes[missing])}
        for shapes in (rest, negative):
            changed = Call(given.operator, given.domain, given.attributes, given.inputs, given.outputs, shapes)
            try:
                assert macs_of(changed) == expected, "the shape does not matter"
            except UnknownShapeError:
                continue


@pytest.mark.parametrize(
    "given",
    [
        call("MatMul", (7, 3), (4, 5)),
        call("MatMul", (2, 7, 3), (5, 3, 4)),
        call("MatMul", (), (3, 4)),
        call("Gemm", (7, 3), (4, 3)),
        call("Gemm", (7,), (7, 3)),
        call("Conv", (1, 6, 9), (8, 3, 3), out=(1, 8, 7)),
        call("ConvTranspose", (1, 6, 9), (8, 3, 3)),
        call("Einsum", (2, 3), (4, 5), equation="ij,jk"),
        call("Einsum", (2, 3), equation="ijk->i"),
    ],
)
def test_shapes_that_do_not_fit_the_operator_are_refused(given: Call) -> None:
    with pytest.raises(UnknownShapeError):
        macs_of(given)


def test_what_custom_operators_multiply_is_not_known() -> None:
    assert not is_known("mine", "MatMul")
    assert not is_known(MS, "QMoE")
    assert is_known("", "Relu")
    assert not multiplies("", "Relu")


def test_tables_name_operators_that_exist() -> None:
    schemas = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas()}
    own = {name for name in _FORMULAS if name[0] != MS}
    assert {name for name in own if name[0] != "ai.onnx.preview" and name[1] != "CausalConvWithState"} <= schemas
    runtime = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    names = {schema.name for schema in runtime.get_all_operator_schema() if schema.domain == MS}
    assert {name for domain, name in _FORMULAS if domain == MS} <= names
    assert names >= _ELEMENTWISE
