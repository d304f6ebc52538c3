"""Models are compared on random inputs, or the reason is given."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import lrzip
from lrzip.core.errors import LrzipError
from tests.support.graphs import after_matmul, loop, model, node, run, save, shared, weight


def with_a_list() -> Any:
    built = after_matmul(node("SequenceAt", "list zero", "item"), node("Add", "a item"))
    built.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    return built


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: after_matmul(node("Reshape", "a five")), "the model does not run on random inputs of 2 × 12: "),
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
    assert report.comparison.inputs == "random inputs of 2 × 12"
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
    monkeypatch.setattr("lrzip.formats.onnx.run._SECONDS", 2.0)
    built = loop()
    built.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(1 << 60), "count"))
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the run of the model was stopped, since it takes more than 2 s."


def test_models_that_declare_huge_inputs_are_not_run(tmp_path: Path) -> None:
    built = model([node("MatMul", "x w")], {"x": [1 << 40, 12]}, {"y": 2}, {"w": weight(12, 12)})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the model declares inputs that are too large to try."


def saturated(*shape: str | int) -> Any:
    """Return a detector whose outputs are 0 on a few pixels, whatever its weights are."""
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b v c", "d", pads=[1, 1, 1, 1]),
        node("Sigmoid", "d"),
    ]
    tensors = {"w": weight(16, 3, 3, 3), "v": weight(1, 16, 3, 3, seed=1), "c": np.array([-60], np.float32)}
    return model(nodes, {"x": shape}, {"y": 4}, tensors)


def test_open_axes_get_sizes_at_which_outputs_depend_on_the_input(tmp_path: Path) -> None:
    path = save(saturated("n", 3, "h", "w"), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=1)
    assert report.not_compared is None
    assert report.differences[0].relative > 0.5


@pytest.mark.parametrize("inputs", [{}, {"input_shapes": ["1,3,2,2"]}, {"calibrate": torch.zeros(4, 3, 2, 2)}])
def test_outputs_that_do_not_depend_on_the_inputs_are_not_compared(inputs: Any, tmp_path: Path) -> None:
    shape = ("n", 3, "h", "w") if inputs else (1, 3, 2, 2)
    path = save(saturated(*shape), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=1, **inputs)
    assert report.differences == ()
    kind = "the calibration data" if "calibrate" in inputs else "random inputs"
    assert f"`y` does not depend on {kind}." in str(report.not_compared)


def test_given_shapes_are_those_of_the_comparison(tmp_path: Path) -> None:
    path = save(saturated("n", 3, "h", "w"), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=1, input_shapes=["1,3,50,70"])
    assert report.comparison.inputs == "random inputs of 1 × 3 × 50 × 70"
    assert report.to_dict()["compared_on"] == report.comparison.inputs


def test_calibration_data_is_compared_on(tmp_path: Path) -> None:
    path = save(model([node("MatMul", "x w")], {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)}), tmp_path / "a.onnx")
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=3, calibrate=x)
    before, after = (run(tmp_path / name, {"x": x.numpy()})["y"].astype(np.float64) for name in ("a.onnx", "b.onnx"))
    assert report.comparison.inputs == "the calibration data"
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert report.differences[0].relative == pytest.approx(expected, rel=1e-5)


def test_outputs_that_depend_on_the_inputs_are_compared_without_the_others(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w"), node("Identity", "anchors", "fixed")]
    built = model(nodes, {"x": ["n", 12]}, {"y": 2, "fixed": 1}, {"w": weight(12, 12), "anchors": weight(5)})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=3)
    assert [difference.output for difference in report.differences] == ["y"]
    assert "`fixed` does not depend on random inputs" in str(report.not_compared)


def test_integers_index_all_rows_of_their_table(tmp_path: Path) -> None:
    """Only the first two rows are those of the original: with indices below 2, the outputs would not differ."""
    table = np.vstack([weight(2, 16), np.zeros((98, 16), np.float32)])
    table[2:, 0] = 1
    nodes = [node("Cast", "ids", "i", to=TensorProto.INT32), node("Gather", "table i", "e"), node("MatMul", "e w")]
    built = model(nodes, {"ids": ["n", "s"]}, {"y": 3}, {"table": table, "w": weight(16, 16)}, kinds={"ids": 7})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    inputs = {"ids": np.random.default_rng(0).integers(100, size=(2, 64))}
    before, after = (run(tmp_path / name, inputs)["y"].astype(np.float64) for name in ("a.onnx", "b.onnx"))
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert report.differences[0].relative == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("latency", [False, True])
def test_a_model_that_asks_for_too_much_memory_is_written_without_a_comparison(latency: bool, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("ConstantOfShape", "many", "c"),
        node("ReduceSum", "c", "r", keepdims=0),
        node("Add", "a r"),
    ]
    tensors = {"w": weight(12, 12), "many": np.array([1 << 30])}
    path = save(model(nodes, {"x": [2, 12]}, {"y": 2}, tensors), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=2, latency=latency)
    assert report.costs is None or report.costs.latency is None
    assert "stopped, since it takes more than 1.3 GB of memory" in str(report.not_compared)
    assert (tmp_path / "b.onnx").exists()


def test_a_model_without_weights_is_refused_as_in_other_formats(tmp_path: Path) -> None:
    path = save(model([node("Relu", "x")], {"x": ["n", 12]}, {"y": 2}, {}), tmp_path / "a.onnx")
    with pytest.raises(LrzipError, match="has no layer that can be factorized"):
        lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert list(tmp_path.iterdir()) == [path]


def test_run_times_are_measured_in_a_process_of_their_own(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=2, latency=True)
    assert report.costs is not None
    assert report.costs.latency is not None
    assert report.costs.latency.dense > 0
