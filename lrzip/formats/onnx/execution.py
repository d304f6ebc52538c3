"""Run an ONNX model once, and record which nodes are executed and the shapes of their values.

onnxruntime executes the taken branches and all iterations of loops, so that the record is complete. This file is
imported in a process of its own.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lrzip.core.errors import LrzipError
from lrzip.formats.onnx.feeds import random_feed
from lrzip.formats.onnx.run import message_of

_FATAL = 4
_KERNEL = "_kernel_time"
# onnxruntime records at most a million events.
_MOST_EVENTS = 999_000


class Executed(NamedTuple):
    """One execution of a node.

    Attributes:
        node: Name of the node.
        operator: Name of its operator.
        inputs: Shapes of its inputs in their order, without those that are absent.
        outputs: Shapes of its outputs.
    """

    node: str
    operator: str
    inputs: Sequence[tuple[int, ...]]
    outputs: Sequence[tuple[int, ...]]


def execute(
    model: bytes, folder: Path, shapes: Sequence[Mapping[str, Sequence[int]]], limits: Mapping[str, int]
) -> tuple[int, list[Executed]]:
    """Run a model on random inputs.

    Args:
        model: Serialized model, in which all nodes have names.
        folder: Folder of its external data.
        shapes: Shapes of the inputs by name. The model is run at the first ones at which it runs.
        limits: Bounds of integer inputs by name.

    Returns:
        The number of these shapes and the executed nodes.

    Raises:
        LrzipError: The model does not run.
    """
    failure = ""
    for number, given in enumerate(shapes):
        try:
            return number, _run(model, folder, given, limits)
        except Exception as error:  # onnxruntime raises exceptions of many classes for unsuitable inputs
            failure = failure or message_of(error)
    raise LrzipError(failure)


def _run(model: bytes, folder: Path, shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int]) -> list[Executed]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling, options.intra_op_num_threads = _FATAL, True, 1
    options.enable_cpu_mem_arena = False  # it takes more than it needs
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # which hides the shapes of weights
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    with TemporaryDirectory() as place:
        options.profile_file_prefix = str(Path(place) / "run")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = session.get_inputs()
        session.run(None, random_feed(inputs, [shapes[item.name] for item in inputs], limits))
        events = json.loads(Path(session.end_profiling()).read_text())
    if len(events) >= _MOST_EVENTS:
        raise ValueError("the model executes more nodes than onnxruntime records")
    return [_executed(event) for event in events if event["name"].endswith(_KERNEL)]


def _executed(event: Mapping[str, Any]) -> Executed:
    arguments = event["args"]
    inputs, outputs = (
        [tuple(next(iter(typed.values()), ())) for typed in arguments.get(f"{side}_type_shape", ())]
        for side in ("input", "output")
    )
    return Executed(event["name"].removesuffix(_KERNEL), arguments["op_name"], inputs, outputs)
