"""Tiny ONNX models, each with weights of one kind, and a runner for them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = np.ndarray[Any, Any]
Tensors: TypeAlias = Mapping[str, Array]

OPSET = 18


def weight(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Return a random weight."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[str | int | None]],
    outputs: Mapping[str, int],
    tensors: Tensors,
    *,
    opset: int = OPSET,
    kinds: Mapping[str, int] | None = None,
    **options: Any,
) -> Any:
    """Return a model with inputs of given shapes and outputs of given ranks, float32 unless `kinds` says otherwise."""
    typed = {name: (kinds or {}).get(name, TensorProto.FLOAT) for name in [*inputs, *outputs]}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, typed[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, typed[name], [None] * rank) for name, rank in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset), *options.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **options)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """Return a node named after its first output."""
    name = attributes.pop("name", f"node_{outputs.split()[0]}")
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, **attributes)


def save(built: Any, path: Path, *, data: str | None = None) -> Path:
    """Write a model, with its tensors in a file of their own if that has a name."""
    onnx.save_model(built, path, save_as_external_data=bool(data), location=data, size_threshold=64)
    return path


def conv(shape: Sequence[int], size: Sequence[int], *, kind: str = "Conv", groups: int = 1, **attributes: Any) -> Any:
    """Return a model of one convolution with a bias."""
    channels = shape[1] * groups if kind == "Conv" else shape[0]
    out = shape[0] if kind == "Conv" else shape[1] * groups
    tensors = {"layer.weight": weight(*shape), "layer.bias": weight(out, seed=1)}
    made = node(kind, "x layer.weight layer.bias", group=groups, **attributes)
    return model([made], {"x": ["batch", channels, *size]}, {"y": len(shape)}, tensors)


def gemm(shape: Sequence[int], bias: Sequence[int] | None, opset: int = OPSET, **attributes: Any) -> Any:
    """Return a model of one Gemm."""
    tensors = {"layer.weight": weight(*shape)} | ({"layer.bias": weight(*bias, seed=1)} if bias else {})
    made = node("Gemm", "x layer.weight" + (" layer.bias" if bias else ""), **attributes)
    return model([made], {"x": ["batch", shape[1 if attributes.get("transB") else 0]]}, {"y": 2}, tensors, opset=opset)


def matmul(shape: Sequence[int], inputs: Sequence[str | int | None], *, left: bool = False) -> Any:
    """Return a model of one MatMul with a constant."""
    made = node("MatMul", "layer.weight x" if left else "x layer.weight")
    return model([made], {"x": inputs}, {"y": len(inputs)}, {"layer.weight": weight(*shape)})


def body(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], tensors: Tensors | None = None) -> Any:
    """Return the graph of an If or Loop."""
    held = [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()]
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs), held)


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int] | None = None) -> Any:
    """Return the declaration of a value."""
    return helper.make_tensor_value_info(name, kind, shape)


def branches() -> Any:
    """Return an If whose branches use a weight of the outer graph, each its own, and one of a Constant node."""
    constant = helper.make_node("Constant", [], ["held"], value=numpy_helper.from_array(weight(16, 20, seed=3), "held"))
    tensors = {"own": weight(20, 20, seed=2)}
    then = body([node("MatMul", "x outer", "a"), node("MatMul", "a own", "t")], [], [value("t")], tensors)
    other = body([constant, node("MatMul", "x held", "b"), node("MatMul", "b own", "e")], [], [value("e")], tensors)
    made = node("If", "flag", then_branch=then, else_branch=other)
    kinds = {"flag": TensorProto.BOOL}
    return model([made], {"x": ["n", 16], "flag": []}, {"y": 2}, {"outer": weight(16, 20)}, kinds=kinds)


def loop() -> Any:
    """Return a Loop whose body multiplies its state by a weight of the outer graph."""
    inner = body(
        [node("MatMul", "state layer.weight", "next"), node("Identity", "condition", "again")],
        [value("i", TensorProto.INT64, []), value("condition", TensorProto.BOOL, []), value("state")],
        [value("again", TensorProto.BOOL, []), value("next")],
    )
    tensors = {"layer.weight": weight(16, 16) / 4, "count": np.array(3, np.int64), "start": np.array(True)}
    return model([node("Loop", "count start x", body=inner)], {"x": ["n", 16]}, {"y": 2}, tensors)


def shared() -> Any:
    """Return two convolutions of different strides with one weight, and two linear layers with one."""
    nodes = [
        node("Conv", "x kernel", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a kernel", "b", strides=[2, 2]),
        node("GlobalAveragePool", "b", "c"),
        node("Flatten", "c", "d"),
        node("Gemm", "d matrix", "e"),
        node("MatMul", "e matrix", "y"),
    ]
    tensors = {"kernel": weight(12, 12, 3, 3) / 10, "matrix": weight(12, 12, seed=1)}
    return model(nodes, {"x": ["n", 12, 9, 9]}, {"y": 2}, tensors)


def agree(before: Tensors, after: Tensors, *, depth: int, inner: int) -> None:
    """Check that outputs differ by rounding.

    A layer of full rank is off by a few eps of ‖W‖‖x‖, which is above its output by about the root of the inner
    dimension, since random inputs do not lie in the leading directions; layers add up.
    """
    assert before.keys() == after.keys()
    tolerance = 4 * depth * np.sqrt(inner) * np.finfo(np.float32).eps
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        assert np.linalg.norm(after[name] - expected) <= tolerance * np.linalg.norm(expected)


def rich() -> Any:
    """Return a model with everything around the weights that has to stay."""
    nodes = [
        node("Conv", "x kernel bias", "a", pads=[1, 1, 1, 1], doc_string="first"),
        node("Mine", "a table", "b", domain="mine", level=3),
        node("Relu", "b", name=""),
    ]
    nodes[0].metadata_props.add(key="trace", value="line 1")
    tensors = {
        "kernel": weight(24, 16, 3, 3),
        "bias": weight(24),
        "table": weight(24, 24),
        "words": np.array(["a", "é"]),
    }
    built = model(nodes, {"x": ["n", 16, 9, 9]}, {"y": 4, "a": 4}, tensors, imports=[helper.make_opsetid("mine", 2)])
    built.producer_name, built.producer_version, built.model_version, built.doc_string = "maker", "1.2", 7, "a model"
    helper.set_model_props(built, {"author": "someone", "note": "é"})
    built.graph.value_info.append(value("b", shape=[1, 24, 9, 9]))
    return built


def external(folder: Path, data: str = "dense.onnx.data") -> Path:
    """Return a model of three MatMul with its weights in a file of their own, and a Constant."""
    names = ("first", "second", "third")
    nodes = [node("MatMul", f"{index if index else 'x'} {name}", str(index + 1)) for index, name in enumerate(names)]
    nodes[-1].output[0] = "y"
    tensors = {name: weight(32, 32, seed=index) / 6 for index, name in enumerate(names)}
    built = model(nodes, {"x": ["n", 32]}, {"y": 2}, tensors | {"unused": weight(3)})
    return save(built, folder / "dense.onnx", data=data)


def placed(path: Path, index: slice = slice(1), **changes: str) -> Path:
    """Change where a model says that its first tensor is, or others."""
    built = onnx.load(path, load_external_data=False)
    for tensor in built.graph.initializer[index]:
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(built.SerializeToString())
    return path


def after_matmul(*nodes: Any, rank: int = 2) -> Any:
    made = [node("MatMul", "x w", "a"), *nodes]
    tensors = {"w": weight(12, 12), "five": np.array([5, 12])}
    return model(made, {"x": ["n", 12]}, {"y": rank}, tensors)


def changed(change: Callable[[Any], object]) -> bytes:
    built = shared()
    change(built)
    return bytes(built.SerializeToString())


GRAPHS: Mapping[str, tuple[Callable[[], Any], Mapping[str, str]]] = {
    "conv1d": (lambda: conv((20, 12, 5), (16,), strides=[2], pads=[1, 2]), {"layer": "conv1d"}),
    "conv2d": (
        lambda: conv((24, 16, 3, 5), (12, 14), strides=[1, 2], pads=[2, 1, 0, 3], dilations=[2, 1]),
        {"layer": "conv2d"},
    ),
    "conv3d": (
        lambda: conv((18, 6, 3, 3, 3), (6, 7, 8), kernel_shape=[3, 3, 3], strides=[1, 2, 1]),
        {"layer": "conv3d"},
    ),
    "same": (lambda: conv((16, 12, 3, 3), (9, 9), auto_pad="SAME_UPPER", strides=[2, 2]), {"layer": "conv2d"}),
    "grouped": (lambda: conv((32, 8, 3, 3), (9, 9), groups=4, pads=[1, 1, 1, 1]), {"layer": "conv2d"}),
    "transposed": (
        lambda: conv(
            (24, 12, 3, 3),
            (6, 6),
            kind="ConvTranspose",
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            output_padding=[1, 1],
        ),
        {"layer": "conv_transpose2d"},
    ),
    "gemm": (lambda: gemm((20, 24), (24,), alpha=0.5, beta=2.0), {"layer": "linear_transposed"}),
    "gemm transB": (lambda: gemm((20, 24), (1, 20), alpha=0.5, beta=2.0, transB=1), {"layer": "linear"}),
    "gemm of opset 9": (lambda: gemm((20, 24), (20,), transB=1, opset=9), {"layer": "linear"}),
    "gemm without bias": (lambda: gemm((20, 24), None, transB=1), {"layer": "linear"}),
    "matmul": (lambda: matmul((24, 20), ["n", 5, 24]), {"layer": "linear_transposed"}),
    "matmul left": (lambda: matmul((24, 20), ["n", 20, 5], left=True), {"layer": "linear"}),
    "matmul of a vector": (lambda: matmul((24, 20), [24]), {"layer": "linear_transposed"}),
    "if": (branches, dict.fromkeys(("outer", "held", "own", "own_2"), "linear_transposed")),
    "loop": (loop, {"layer": "linear_transposed"}),
    "shared": (shared, {"kernel": "conv2d", "matrix": "linear_transposed"}),
}


def feeds(path: Path, seed: int = 0) -> dict[str, Array]:
    """Return random inputs of the declared shapes, 3 for each open dimension."""
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for item in _session(path).get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in item.shape]
        if item.type == "tensor(float)":
            made[item.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            dtype = {"tensor(bool)": "bool", "tensor(int64)": "int64"}[item.type]
            made[item.name] = np.asarray(generator.integers(2, size=shape)).astype(dtype)
    return made


def run(path: Path, inputs: Tensors) -> dict[str, Array]:
    """Return the outputs of a model by name."""
    session = _session(path)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
