"""Weights behind nodes that cast or rearrange them are factorized as they are used."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

import lrzip
from lrzip.core.layers import Keep, Layer
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import Array, agree, feeds, model, node, run, save, weight

KERNEL, MATRIX = weight(24, 16, 3, 3) / 10, weight(24, 20, seed=1) / 5


def net(nodes: Sequence[Any], tensors: dict[str, Array], **options: Any) -> Any:
    """Return a convolution with the kernel `w` and a product with the matrix `m`, which nodes compute."""
    layers = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f m"),
    ]
    return model([*nodes, *layers], {"x": ["n", 16, 9, 9]}, {"y": 2}, tensors, **options)


def constant(name: str, array: Array) -> Any:
    return node("Constant", "", name, value=numpy_helper.from_array(array, name))


CASES: dict[str, Callable[[], Any]] = {
    "Cast": lambda: net(
        [node("Cast", "w0", "w", to=TensorProto.FLOAT), node("Cast", "m0", "m", to=TensorProto.FLOAT)],
        {"w0": KERNEL.astype("f2"), "m0": MATRIX.astype("f2")},
    ),
    "narrowing Cast": lambda: net(
        [node("Cast", "w0", "w", to=TensorProto.FLOAT), node("Cast", "m0", "m", to=TensorProto.FLOAT)],
        {"w0": KERNEL.astype("f8"), "m0": MATRIX.astype("f8")},
    ),
    "Identity": lambda: net([node("Identity", "w0", "w"), node("Identity", "m0", "m")], {"w0": KERNEL, "m0": MATRIX}),
    "Transpose": lambda: net(
        [node("Transpose", "w0", "w", perm=[3, 2, 0, 1]), node("Transpose", "m0", "m")],
        {"w0": KERNEL.transpose(2, 3, 1, 0).copy(), "m0": MATRIX.T.copy()},
    ),
    "Reshape": lambda: net(
        [node("Reshape", "w0 s", "w"), node("Reshape", "m0 t", "m")],
        {"w0": KERNEL.reshape(24, -1), "m0": MATRIX.ravel(), "s": np.array([0, -1, 3, 3]), "t": np.array([24, 20])},
    ),
    "Squeeze and Unsqueeze": lambda: net(
        [node("Squeeze", "w0 s", "w"), node("Unsqueeze", "m0 t", "n"), node("Flatten", "n", "m", axis=2)],
        {"w0": KERNEL[None], "m0": MATRIX, "s": np.array([0]), "t": np.array([0])},
    ),
    "Constant": lambda: net(
        [
            constant("w0", KERNEL.T.copy()),
            node("Transpose", "w0", "w"),
            constant("m0", MATRIX),
            node("Identity", "m0", "m"),
        ],
        {},
    ),
    "value_floats": lambda: net(
        [
            node("Constant", "", "m0", value_floats=MATRIX.ravel().tolist()),
            constant("s", np.array([24, 20])),
            node("Reshape", "m0 s", "m"),
            node("Identity", "w0", "w"),
        ],
        {"w0": KERNEL},
    ),
    "several nodes": lambda: net(
        [
            node("Cast", "w0", "w1", to=TensorProto.FLOAT),
            node("Reshape", "w1 s", "w2"),
            node("Transpose", "w2", "w"),
            node("Identity", "m0", "m1"),
            node("Identity", "m1", "m"),
        ],
        {"w0": KERNEL.T.reshape(9, -1).astype("f2"), "s": np.array([3, 3, 16, 24]), "m0": MATRIX},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_behind_nodes_are_factorized_as_they_are_used(case: str, tmp_path: Path) -> None:
    path = save(CASES[case](), tmp_path / "a.onnx")
    with open_checkpoint(path) as checkpoint:
        layers = {item.name: item for item in checkpoint.layers() if isinstance(item, Layer)}
        assert {name: (layer.kind.name, layer.weight.shape) for name, layer in layers.items()} == {
            "w0": ("conv2d", KERNEL.shape),
            "m0": ("linear_transposed", MATRIX.shape),
        }
        read = checkpoint.read("w0").float()
        assert torch.allclose(read, torch.from_numpy(KERNEL), atol=1e-3)
        assert b"".join(checkpoint.chunks("w0")) == checkpoint.read("w0").numpy().tobytes()
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    inputs = feeds(path)
    before, after = run(path, inputs)["y"], run(tmp_path / "b.onnx", inputs)["y"]
    tolerance = 2e-3 if {"f2"} & {array.dtype.str[1:] for array in tensors_of(path)} else 2e-5
    assert np.linalg.norm(after - before) <= tolerance * np.linalg.norm(before)
    assert report.differences
    # Nothing of the weights and the nodes around them is left, but the casts of factors.
    written = onnx.load(tmp_path / "b.onnx").graph
    assert not {"w0", "m0", "s", "t"} & {tensor.name for tensor in written.initializer}
    assert not {"Identity", "Reshape", "Transpose", "Squeeze", "Constant"} & {item.op_type for item in written.node}


def tensors_of(path: Path) -> list[Array]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def test_factors_are_stored_in_the_dtype_of_the_file(tmp_path: Path) -> None:
    lrzip.compress(save(CASES["Cast"](), tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=3)
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer} == {TensorProto.FLOAT16}


def test_layers_that_are_left_unchanged_keep_their_nodes(tmp_path: Path) -> None:
    path = save(CASES["Reshape"](), tmp_path / "a.onnx")
    lrzip.compress(path, tmp_path / "b.onnx", rank=3, skip=["w0"])
    before, after = (onnx.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert after.node[0] == before.node[0]
    assert {"w0", "s"} <= {tensor.name for tensor in after.initializer}
    assert "m0" not in {tensor.name for tensor in after.initializer}


def reshaped_by_the_input() -> Any:
    return net(
        [node("Shape", "k", "s"), node("Reshape", "w0 s", "w")], {"w0": KERNEL.ravel(), "k": KERNEL, "m": MATRIX}
    )


def tied() -> Any:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Transpose", "table", "t"),
        node("MatMul", "e t"),
    ]
    return model(nodes, {"ids": ["n"]}, {"y": 2}, {"table": weight(30, 16)}, kinds={"ids": TensorProto.INT64})


def used_in_two_ways() -> Any:
    nodes = [node("Transpose", "m", "t"), node("MatMul", "x m", "a"), node("MatMul", "a t")]
    return model(nodes, {"x": ["n", 16]}, {"y": 2}, {"m": weight(16, 16)})


@pytest.mark.parametrize(("build", "name"), [(reshaped_by_the_input, "w0"), (tied, "table"), (used_in_two_ways, "m")])
def test_weights_that_are_not_constant_or_shared_in_other_forms_are_kept(
    build: Callable[[], Any], name: str, tmp_path: Path
) -> None:
    with open_checkpoint(save(build(), tmp_path / "a.onnx")) as checkpoint:
        assert name in {item.tensor.name for item in checkpoint.layers() if isinstance(item, Keep)}


def test_a_weight_shared_through_identities_is_one_layer(tmp_path: Path) -> None:
    nodes = [node("Identity", "m", "i"), node("MatMul", "x m", "a"), node("MatMul", "a i")]
    path = save(model(nodes, {"x": ["n", 16]}, {"y": 2}, {"m": weight(16, 16) / 4}), tmp_path / "a.onnx")
    lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    inputs = feeds(path)
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=2, inner=16)
    assert [item.op_type for item in onnx.load(tmp_path / "b.onnx").graph.node] == ["MatMul"] * 4


def test_layers_behind_nodes_are_calibrated(tmp_path: Path) -> None:
    path = save(CASES["Transpose"](), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=4, calibrate=torch.randn(8, 16, 9, 9))
    assert len(report.results) == 2
    assert all(result.output_error is not None for result in report.results)
