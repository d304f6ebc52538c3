"""What onnxruntime accepts is repaired before any work is done, or written with a warning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import agree, body, branches, conv, feeds, model, node, run, save, shared, value, weight


def without_order() -> Any:
    built = shared()
    nodes = list(built.graph.node)
    del built.graph.node[:]
    built.graph.node.extend(reversed(nodes))
    return built


def without_a_name() -> Any:
    built = shared()
    built.graph.name = ""
    return built


def without_a_domain() -> Any:
    built = shared()
    built.graph.node[-1].output[0] = "z"
    built.graph.node.append(node("Gelu", "z", domain="com.microsoft", name="last"))
    return built


def without_a_type() -> Any:
    built = shared()
    built.graph.output[0].ClearField("type")
    return built


def with_inputs(ir: int, names: tuple[str, ...] = ("kernel", "matrix")) -> Any:
    nodes = [
        node("Conv", "x kernel", "a", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "c"),
        node("MatMul", "c matrix"),
    ]
    tensors = {"kernel": weight(12, 12, 3, 3) / 10, "matrix": weight(12, 12, seed=1)}
    built = model(nodes, {"x": ["n", 12, 9, 9]}, {"y": 2}, tensors, opset=8)
    built.ir_version = ir
    for tensor in built.graph.initializer:
        if tensor.name in names:
            built.graph.input.append(value(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    return built


REPAIRED: dict[str, tuple[Callable[[], Any], str]] = {
    "unsorted nodes": (without_order, "in topological order"),
    "unnamed graph": (without_a_name, "is named `graph`"),
    "missing domain": (without_a_domain, "The domain `com.microsoft`, which nodes use, is imported"),
    "untyped output": (without_a_type, "The output `y` gets its type"),
    "inputs with initializers": (lambda: with_inputs(8), "2 initializers that are also inputs of the graph are"),
    "initializers of IR 3": (lambda: with_inputs(3), "The IR version of the output is 4, not 3"),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_a_model_that_onnxruntime_accepts_is_repaired(case: str, tmp_path: Path) -> None:
    build, note = REPAIRED[case]
    path = tmp_path / "a.onnx"
    path.write_bytes(build().SerializeToString())
    inputs = feeds(path)
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    assert len(report.plan.factorize) >= 2
    assert any(note in text for text in report.notes)
    assert report.to_dict()["notes"] == list(report.notes)
    onnx.checker.check_model(str(tmp_path / "b.onnx"))
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=6, inner=108)


def test_a_valid_model_has_no_notes(tmp_path: Path) -> None:
    assert lrzip.compress(save(shared(), tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2).notes == ()


def test_initializers_are_no_inputs_of_the_output(tmp_path: Path) -> None:
    path = save(with_inputs(3), tmp_path / "a.onnx")
    lrzip.compress(path, tmp_path / "b.onnx", rank=2, only=["kernel"])
    after = onnx.load(tmp_path / "b.onnx")
    assert [item.name for item in after.graph.input] == ["x"]
    assert after.ir_version == 4


def test_defaults_that_callers_may_override_stay_inputs(tmp_path: Path) -> None:
    """Since version 4 of the format, an input with an initializer is one with a default."""
    nodes = [node("MatMul", "x w", "a"), node("Add", "a bias", "b"), node("Mul", "b scale")]
    tensors = {"w": weight(12, 12), "scale": np.array(2, np.float32), "bias": weight(12)}
    built = model(nodes, {"x": ["n", 12]}, {"y": 2}, tensors)
    built.graph.input.extend([value("w", shape=[12, 12]), value("scale", shape=[]), value("bias", shape=[12])])
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "other"))
    path = save(built, tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    assert report.notes[0].startswith("An initializer that is also an input of the graph is a constant")
    assert [item.name for item in onnx.load(tmp_path / "b.onnx").graph.input] == ["x", "scale", "bias"]
    inputs = {"x": weight(3, 12, seed=5), "scale": np.array(5, np.float32)}
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=1, inner=12)
    with open_checkpoint(path) as checkpoint:
        assert all(getattr(checkpoint, "bias_of")(layer.decision.layer) is None for layer in report.results)  # noqa: B009


def circle() -> Any:
    built = shared()
    built.graph.node[0].input[0] = "b"
    return built


def undefined() -> Any:
    built = shared()
    built.graph.node[0].input[0] = "nothing"
    return built


@pytest.mark.parametrize(
    ("build", "message"),
    [(circle, "depend on each other in a circle"), (undefined, "not a valid ONNX model: .*nothing")],
)
def test_what_nothing_can_run_is_refused_before_any_work(
    build: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(build().SerializeToString())
    monkeypatch.setattr("lrzip.pipeline.session.Session.plan", None)
    with pytest.raises(UnsupportedCheckpoint, match=message):
        lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert list(tmp_path.iterdir()) == [path]


def test_a_fault_that_onnxruntime_ignores_is_written_with_a_warning(tmp_path: Path) -> None:
    built = conv((24, 16, 3, 3), (9, 9), kernel_shape=[3, 3])
    built.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "a.onnx"
    path.write_bytes(built.SerializeToString())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(str(path))
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert any("onnx's checker finds a fault in" in note and "shape" in note for note in report.notes)


def test_branches_are_repaired_too(tmp_path: Path) -> None:
    built = branches()
    then = body([node("MatMul", "x outer", "t")], [], [value("t")])
    then.name = ""
    built.graph.node[0].attribute[0].g.CopyFrom(then)
    path = tmp_path / "a.onnx"
    path.write_bytes(built.SerializeToString())
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert any("is named `graph`" in note for note in report.notes)


def test_faults_of_a_model_are_no_lines_on_standard_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(undefined().SerializeToString())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.layers()
    assert not caplog.records


@pytest.mark.parametrize("field", ["input", "output"])
def test_nodes_without_inputs_or_outputs_are_no_layers(field: str, tmp_path: Path) -> None:
    built = model([node("MatMul", "w w")], {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)})
    getattr(built.graph.node[0], field).pop()
    path = tmp_path / "a.onnx"
    path.write_bytes(built.SerializeToString())
    with open_checkpoint(path) as checkpoint:
        (kept,) = checkpoint.layers()
    assert "which lacks inputs or an output" in getattr(kept, "reason")  # noqa: B009
