"""Infer the types of the outputs of ONNX models, in a process of its own."""

from collections.abc import Mapping

import onnx


def output_types(model: bytes) -> Mapping[str, bytes]:
    """Return the inferred types of the outputs of a serialized model by name, each as a serialized TypeProto."""
    graph = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(model)).graph
    return {value.name: value.type.SerializeToString() for value in graph.output if value.HasField("type")}
