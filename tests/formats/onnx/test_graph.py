"""The layers of an ONNX model are recognized by the nodes that use their weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import lrzip
from lrzip.core.layers import Keep, Layer
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import Tensors, agree, conv, feeds, model, node, run, save, shared, weight


def test_layers_are_named_and_have_the_kind_of_their_nodes(case: tuple[Path, Mapping[str, str]]) -> None:
    path, kinds = case
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.layers()
        assert {item.name: str(item.kind) for item in found if isinstance(item, Layer)} == kinds
        weights = {item.weight.name if isinstance(item, Layer) else item.tensor.name for item in found}
        assert weights == checkpoint.tensors().keys()
        assert len({item.name for item in found}) == len(found)


def kept(model: Any, path: Path) -> dict[str, str]:
    with open_checkpoint(save(model, path)) as checkpoint:
        return {item.name: item.reason for item in checkpoint.layers() if isinstance(item, Keep)}


def one(kind: str, inputs: str, tensors: Tensors, rank: int = 2, **attributes: Any) -> Any:
    """Return a model of one node with inputs x and z that are not constants."""
    shapes = {name: [None] * rank for name in inputs.split() if name in ("x", "z")}
    return model([node(kind, inputs, **attributes)], shapes, {"y": rank}, tensors)


def overridable() -> Any:
    """Return a model with a default, which callers may override since another initializer is no input."""
    shapes: dict[str, list[str | int | None]] = {"x": ["n", 12], "scale": [12]}
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a scale")]
    return model(nodes, shapes, {"y": 2}, {"w": weight(12, 12), "scale": weight(12)})


def put_out() -> Any:
    return model([node("MatMul", "x w")], {"x": ["n", 12]}, {"y": 2, "w": 2}, {"w": weight(12, 12)})


def two_layouts() -> Any:
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "a w", transB=1)]
    return model(nodes, {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)})


def dequantized() -> Any:
    nodes = [node("DequantizeLinear", "w scale", "f"), node("MatMul", "x f")]
    tensors: Tensors = {"w": weight(12, 12).astype(np.int8), "scale": np.array(0.1, np.float32)}
    return model(nodes, {"x": ["n", 12]}, {"y": 2}, tensors)


def recurrent() -> Any:
    tensors = {"w": weight(1, 48, 12), "r": weight(1, 48, 12)}
    return one("LSTM", "x w r", tensors, 3, hidden_size=12)


def custom() -> Any:
    made = node("MatMul", "x w", domain="mine")
    return model([made], {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)}, imports=[helper.make_opsetid("mine", 1)])


KEPT: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "overridable": (overridable, {"scale": "also an input of the graph"}),
    "output": (put_out, {"w": "an output of the graph"}),
    "two layouts": (two_layouts, {"w": "differently, as linear and linear_transposed"}),
    "dequantized": (dequantized, {"w": "quantized, for DequantizeLinear", "scale": "quantized"}),
    "integers": (
        lambda: one("MatMulInteger", "x w", {"w": weight(12, 12).astype(np.int8)}),
        {"w": "quantized, for MatMulInteger"},
    ),
    "recurrent": (recurrent, {"w": "recurrent weight of LSTM", "r": "recurrent weight of LSTM"}),
    "custom": (custom, {"w": "used by MatMul of the custom domain mine"}),
    "embedding": (lambda: one("Gather", "w x", {"w": weight(12, 12)}), {"w": "used by Gather"}),
    "transA": (lambda: one("Gemm", "x w", {"w": weight(12, 12)}, transA=1), {"w": "Gemm with transA"}),
    "first of gemm": (lambda: one("Gemm", "w x", {"w": weight(12, 12)}), {"w": "used by Gemm"}),
    "batched": (
        lambda: one("MatMul", "x w", {"w": weight(3, 12, 12)}, 3),
        {"w": "3-dimensional, multiplied by MatMul"},
    ),
    "constants": (
        lambda: one("MatMul", "v w", {"v": weight(12, 12), "w": weight(12, 12)}),
        dict.fromkeys("vw", "another constant"),
    ),
    "depthwise": (
        lambda: one("Conv", "x w", {"w": weight(12, 1, 3, 3)}, 4, group=12),
        {"w": "depthwise convolution"},
    ),
    "whole": (lambda: one("MatMul", "x w", {"w": weight(12, 12).astype(np.int32)}), {"w": "int32, not one of"}),
    "unused": (lambda: one("Relu", "x", {"w": weight(12, 12)}), {"w": "not used by any node"}),
    "vector": (
        lambda: one("Add", "x w", {"w": weight(12), "s": np.array(1, np.float32)}),
        {"w": "a vector", "s": "a scalar"},
    ),
}


@pytest.mark.parametrize(("build", "expected"), KEPT.values(), ids=KEPT)
def test_constants_that_are_no_weight_of_a_layer_are_kept(
    build: Callable[[], Any], expected: dict[str, str], tmp_path: Path
) -> None:
    found = kept(build(), tmp_path / "a.onnx")
    assert found.keys() == expected.keys()
    assert all(expected[name] in found[name] for name in found)


def test_a_grouped_transposed_convolution_is_kept(tmp_path: Path) -> None:
    path = save(conv((12, 6, 3), (9,), kind="ConvTranspose", groups=2), tmp_path / "a.onnx")
    assert (
        "in groups"
        in {keep.name: keep.reason for keep in lrzip.compress(path, rank=2, dry_run=True).plan.keep}["layer"]
    )


def test_layers_are_named_by_their_scope_where_exporters_invented_the_name(tmp_path: Path) -> None:
    names = {"val_7": "a", "onnx::MatMul_48": "b", "encoder.fc.weight": "c", "val_9": "d", "val_11": "e"}
    nodes = [
        node("MatMul", f"{'x' if index == 0 else index} {name}", str(index + 1)) for index, name in enumerate(names)
    ]
    nodes[-1].output[0] = "y"
    for made, scopes in zip(
        nodes, ["['', 'enc.fc1', 'linear']", None, "['', 'other', 'x']", "[broken", None], strict=True
    ):
        if scopes:
            made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    nodes[-1].name = ""
    built = model(nodes, {"x": ["n", 12]}, {"y": 2}, {name: weight(12, 12) for name in names})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    found = [result.decision.layer.name for result in report.results]
    assert found == ["enc.fc1", "node_2", "encoder.fc", "node_4", "val_11"]
    stored = {tensor.name for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert stored == {f"{name}.{stage}.weight" for name in found for stage in range(2)}


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x val_1", "a"), node("MatMul", "a val_2", "fc.0.weight"), node("Relu", "fc.0.weight")]
    for made in nodes[:2]:
        made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc', 'linear']")
    built = model(nodes, {"x": ["n", 12]}, {"y": 2}, {"val_1": weight(12, 12), "val_2": weight(12, 12, seed=1)})
    path = save(built, tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    assert [result.decision.layer.name for result in report.results] == ["fc_2", "fc_3"]
    inputs = feeds(path)
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=2, inner=12)


def test_ranks_of_convolutions_are_multiples_of_the_block_of_runtimes(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")

    def ranks(**options: Any) -> dict[str, int]:
        report = lrzip.compress(path, rank=3, dry_run=True, **options)
        return {decision.layer.name: decision.ranks[0] for decision in report.plan.factorize}

    assert ranks() == {"kernel": 8, "matrix": 3}
    assert ranks(round_to=1) == {"kernel": 3, "matrix": 3}
    assert ranks(round_to=4) == {"kernel": 4, "matrix": 4}
