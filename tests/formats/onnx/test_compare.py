"""Models are compared on random inputs, or the reason is given."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lrzip
from tests.support.graphs import after_matmul, loop, model, node, run, save, shared, weight


def with_a_list() -> Any:
    built = after_matmul(node("SequenceAt", "list zero", "item"), node("Add", "a item"))
    built.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    return built


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: after_matmul(node("Reshape", "a five")), "does not run on random inputs of its declared shapes"),
        (lambda: after_matmul(node("Log", "a")), "returns NaN or Inf"),
        (lambda: after_matmul(node("MatMul", "a w", "b"), node("Mine", "b", domain="mine")), "does not run in onnx"),
        (with_a_list, "the input `list` is a seq"),
    ],
)
def test_models_that_do_not_run_on_random_inputs_are_not_compared(
    build: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    built = build()
    built.opset_import.append(helper.make_opsetid("mine", 1))
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.differences == ()
    assert message in str(report.not_compared)
    assert "\n" not in str(report.not_compared)


def test_an_output_whose_shape_changes_is_not_compared(tmp_path: Path) -> None:
    built = after_matmul(node("Relu", "a", "b"), node("NonZero", "b"))
    built.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=1)
    assert "shape of the output `y` depends" in str(report.not_compared)


def test_differences_are_those_of_the_outputs(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v"), node("Identity", "x", "same")]
    tensors = {"w": weight(12, 12), "v": weight(12, 12, seed=1)}
    built = model(nodes, {"x": ["n", 12]}, {"y": 2, "same": 2}, tensors)
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=3)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)}
    before, after = (run(tmp_path / name, inputs)["y"].astype(np.float64) for name in ("a.onnx", "b.onnx"))
    found = {difference.output: difference for difference in report.differences}
    assert found.keys() == {"y", "same"}
    assert found["same"].absolute == found["same"].relative == 0
    assert found["y"].absolute == pytest.approx(abs(after - before).max(), rel=1e-6)
    assert found["y"].relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-6)
    assert report.to_dict()["differences"][0] == {
        "output": "y",
        "absolute": found["y"].absolute,
        "relative": found["y"].relative,
    }


def test_without_onnxruntime_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = lrzip.compress(save(shared(), tmp_path / "a.onnx"), rank=2)
    assert "pip install 'lrzip-nn[onnx]'" in str(report.not_compared)


def test_a_model_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrzip.formats.onnx.run._SECONDS", 0.3)
    built = loop()
    built.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(1 << 60), "count"))
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the model runs for more than 0.3 s."


def test_models_that_declare_huge_inputs_are_not_run(tmp_path: Path) -> None:
    built = model([node("MatMul", "x w")], {"x": [1 << 40, 12]}, {"y": 2}, {"w": weight(12, 12)})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the model declares inputs that are too large to try."
