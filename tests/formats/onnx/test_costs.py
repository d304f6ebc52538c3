"""Models count as they run, at sizes that are stated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lrzip
from lrzip.core.costs import Multiplications
from lrzip.core.errors import LrzipError
from lrzip.formats.onnx.model import OnnxFile
from lrzip.networks.inputs import InputShape

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
W = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)


def value(name: str, shape: Sequence[Any] | None = None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], out: Any = None, functions: Any = (), **constants: Any
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in {"w": W, **constants}.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", out)], tensors)
    domains = ["", *{node.domain for node in nodes if node.domain}]
    opsets = [helper.make_opsetid(domain, 1 if domain else 17) for domain in domains]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8), path)
    return path


def measured(path: Path, *shapes: str) -> Multiplications:
    return OnnxFile(path).measure([InputShape.parse(text) for text in shapes])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


# Rows of x at which z is not zero.
NONZERO = [
    helper.make_node("NonZero", ["z"], ["at"]),
    helper.make_node("Transpose", ["at"], ["t"]),
    helper.make_node("GatherND", ["x", "t"], ["g"]),
    helper.make_node("MatMul", ["g", "w"], ["y"]),
]
MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize("first", ["N", "batch_size", None, -1, 0])
def test_an_open_batch_counts_one_sample(first: object, path: Path) -> None:
    found = measured(save(path, [MATMUL], [value("x", [first, 6])]))
    assert (found.macs, found.inputs, found.not_counted) == (36, {"x": (1, 6)}, None)


@pytest.mark.parametrize("open_axis", ["length", None, -1])
def test_open_axes_have_a_size_that_is_stated(open_axis: object, path: Path) -> None:
    found = measured(save(path, [MATMUL], [value("x", ["batch", open_axis, 6])]))
    batch, length, _ = found.inputs["x"]
    assert (batch, found.macs) == (1, length * 36)
    assert length > 1
    given = measured(path, "2,5,6")
    assert (given.macs, given.inputs) == (2 * 5 * 36, {"x": (2, 5, 6)})


def test_open_axes_of_the_same_name_have_the_same_size(path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    found = measured(save(path, nodes, [value("x", ["T", "N", 6]), value("z", ["T", "N", 6])]))
    assert found.inputs["x"] == found.inputs["z"]
    assert found.inputs["x"][1] == 1, "the axis that is named so is the batch"


def test_a_recurrent_state_has_its_batch_in_the_middle(path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "state"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    found = measured(save(path, nodes, [value("x", [None, 6]), value("state", [2, None, 6])]))
    assert found.inputs == {"x": (1, 6), "state": (2, 1, 6)}


def test_weights_and_biases_of_executed_nodes_are_told_apart(path: Path) -> None:
    """The size of the first product depends on values, so the model is run."""
    pytest.importorskip("onnxruntime")
    gemm = helper.make_node("Gemm", ["g", "w", "bias"], ["y"], transB=1)
    constants = {"z": np.array([1, 1]), "bias": np.zeros(6, np.float32)}
    found = measured(save(path, [*NONZERO[:3], gemm], [value("x", [2, 6])], **constants))
    assert (found.macs, found.not_counted) == (2 * 36, None)


def test_inputs_of_one_number_need_no_shape(path: Path) -> None:
    found = measured(save(path, [MATMUL], [value("n", []), value("x", ["a", 6])]), "3,6")
    assert (found.macs, found.inputs) == (3 * 36, {"n": (), "x": (3, 6)})


def test_declared_sizes_of_minus_one_are_never_used(path: Path) -> None:
    model = onnx.load(save(path, [MATMUL], [value("x", [2, 6])]))
    model.graph.output[0].CopyFrom(value("y", [-1, 6]))
    model.graph.value_info.append(value("x", [-1, -1]))
    onnx.save(model, path)
    assert measured(path).macs == 2 * 36


def test_weights_on_either_side_have_positions(path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["w", "x"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    found = measured(save(path, nodes, [value("x", [6, 7])], v=np.ones((7, 3), np.float32)))
    assert (found.positions["w"].counts, found.positions["v"].counts) == ((7,), (6,))
    assert found.macs == 7 * 36 + 6 * 7 * 3


def loop(iterations: str = "n") -> Any:
    """Return a Loop that multiplies by w."""
    nodes = [helper.make_node("MatMul", ["c", "w"], ["c2"]), helper.make_node("Identity", ["k"], ["k2"])]
    inputs = [value("i", [], INT), value("k", [], BOOL), value("c")]
    body = helper.make_graph(nodes, "body", inputs, [value("k2", [], BOOL), value("c2")])
    return helper.make_node("Loop", [iterations, "", "x"], ["y"], body=body)


def branch() -> Any:
    """Return an If that multiplies by w once or twice."""
    once = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"])], "once", [], [value("a")])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["c"])]
    twice = helper.make_graph(nodes, "twice", [], [value("c")])
    return helper.make_node("If", ["p"], ["y"], then_branch=once, else_branch=twice)


def scan() -> Any:
    nodes = [helper.make_node("MatMul", ["s", "w"], ["s2"]), helper.make_node("Identity", ["r"], ["r2"])]
    body = helper.make_graph(nodes, "body", [value("s"), value("r")], [value("s2"), value("r2")])
    return helper.make_node("Scan", ["x", "z"], ["y", "rows"], body=body, num_scan_inputs=1)


RUNS: dict[str, tuple[Sequence[Any], dict[str, Any], int]] = {
    "loop": ([loop()], {"n": np.array(5)}, 5 * 2 * 36),
    "taken": ([branch()], {"p": np.array(True)}, 2 * 36),
    "other": ([branch()], {"p": np.array(False)}, 2 * 2 * 36),
    "scan": ([scan()], {"z": np.ones((3, 4), np.float32)}, 3 * 2 * 36),
    "values": (NONZERO, {"z": np.array([1, 0])}, 36),
}


@pytest.mark.parametrize("name", RUNS)
def test_branches_loops_and_sizes_that_depend_on_values_count_as_they_run(name: str, path: Path) -> None:
    pytest.importorskip("onnxruntime")
    nodes, constants, expected = RUNS[name]
    found = measured(save(path, nodes, [value("x", [2, 6])], **constants))
    assert (found.macs, found.not_counted, found.unknown) == (expected, None, frozenset())
    assert found.positions["w"].counts == (expected // 36,)


@pytest.mark.parametrize("name", RUNS)
def test_what_cannot_be_run_is_left_out_and_named(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrzip.formats.onnx.costs.is_installed", lambda: False)
    nodes, constants, _ = RUNS[name]
    found = measured(save(path, nodes, [value("x", [2, 6])], **constants))
    assert found.not_counted
    assert "`MatMul`" in found.not_counted
    assert "pip install" in found.not_counted
    assert (found.macs, found.unknown) == (0, {"w"})
    report = lrzip.compress(path, rank=1, dry_run=True)
    assert report.costs
    assert (report.costs.layers["w"].macs_before, report.costs.macs_after) == (None, None)
    with pytest.raises(LrzipError, match="multiply-accumulates of `w` are not known"):
        lrzip.compress(path, budget="macs=50%", dry_run=True)


@pytest.mark.parametrize("times", [1, 3])
def test_functions_count_as_their_nodes(times: int, path: Path) -> None:
    """A function with its own weight, and one that is given its weight."""
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(W, "v"))
    products = [helper.make_node("MatMul", ["a", name], ["b"]) for name in "vu"]
    opset = [helper.make_opsetid("", 17)]
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [constant, products[0]], opset)
    outer = helper.make_function("own", "Outer", ["a", "u"], ["b"], [products[1]], opset)
    calls = [helper.make_node("Inner", [f"h{n}"], [f"h{n + 1}"], domain="own") for n in range(times)]
    calls += [helper.make_node("Outer", [f"h{times}", "w"], ["y"], domain="own")]
    save(path, calls, [value("h0", [2, 6])], [2, 6], functions=[inner, outer])
    file = OnnxFile(path)
    assert file.measure([]).macs == (times + 1) * 2 * 36
    assert sum(spec.numel for spec in file.tensors().values()) == 2 * 36, "a weight counts once"
    small = path.with_name("small.onnx")
    report = lrzip.compress(path, small, rank=2)
    assert len(report.results) == 2
    assert report.costs
    assert OnnxFile(small).measure([]).macs == report.costs.macs_after == (times + 1) * 2 * 2 * 12


def test_one_operator_of_unknown_costs_leaves_the_rest_counted(path: Path) -> None:
    nodes = [MATMUL, helper.make_node("Suppress", ["y"], ["z"], domain="plugin")]
    found = measured(save(path, nodes, [value("x", [2, 6])]))
    assert found.macs == 2 * 36
    assert found.not_counted == "`Suppress` of the domain `plugin`, of unknown costs"
    assert found.positions["w"].counts == (2,)


def test_latency_does_not_need_the_counts(path: Path) -> None:
    pytest.importorskip("onnxruntime")
    nodes = [
        helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    save(path, nodes, [value("x", [2, 6])], [2, 6])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrzip.formats.onnx.costs.is_installed", lambda: False)
        report = lrzip.compress(path, path.with_name("small.onnx"), rank=1, latency=True)
    assert report.costs
    assert (report.costs.macs_before, report.costs.macs_after) == (0, None)
    assert report.costs.not_counted
    assert report.costs.latency


def test_models_that_do_not_take_the_sizes_are_refused(path: Path) -> None:
    pytest.importorskip("onnxruntime")
    save(path, [MATMUL], [value("x", ["a", "b"])])
    with pytest.raises(LrzipError, match="does not run on inputs of these sizes"):
        measured(path, "2,5")
    with pytest.raises(LrzipError, match="takes 1 inputs, `x`"):
        measured(path, "2,6", "2,6")


@pytest.mark.parametrize("shape", [[], [6], [6, 6, 6, 6]])
def test_any_number_of_axes_is_counted_or_left_out(shape: Sequence[int], path: Path) -> None:
    for operator in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"):
        options = {"equation": "ij,jk->ik"} if operator == "Einsum" else {}
        save(path, [helper.make_node(operator, ["x", "w"], ["y"], **options)], [value("x", shape)])
        found = measured(path)
        assert (found.not_counted is None) == (operator == "MatMul" and bool(shape))
