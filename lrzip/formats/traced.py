"""Write traced programs as `.pt2` or ONNX files, which are checked against the network before they appear."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.report import Comparison, Difference
from lrzip.formats.files.atomic import atomic_files
from lrzip.networks.inputs import outputs_of
from lrzip.networks.programs.compare import dependence, difference_of
from lrzip.networks.programs.silence import silenced
from lrzip.networks.programs.trace import Traced
from lrzip.networks.programs.trials import constant_outputs, randomized

# Tolerated relative difference of an output: float32 sums in another order, with room for deep networks.
_AGREES = 1e-3
_PROTOBUF_LIMIT = 1 << 31


def save_pt2(traced: Traced, destination: Path) -> Comparison:
    """Write a program after loading it again and comparing its outputs with those of the network.

    Args:
        traced: The program and its network.
        destination: Path of the output.

    Returns:
        One difference per output of the network that depends on its inputs, the largest over several batch sizes.

    Raises:
        LrzipError: The outputs differ by more than rounding; nothing is written.
    """
    with _checked_file(destination, ".pt2") as path:
        with silenced():
            torch.export.save(traced.program, path)
            loaded = torch.export.load(path).module()
        return _compare(traced, lambda inputs: outputs_of(loaded, inputs), "the program")


def save_onnx(traced: Traced, destination: Path) -> Comparison:
    """Write an ONNX model after comparing its outputs in onnxruntime with those of the network.

    Above 2 GB, the limit of protobuf, the weights are written to `NAME.data` beside the model.

    Args:
        traced: The program and its network.
        destination: Path of the output.

    Returns:
        One difference per output of the network that depends on its inputs, the largest over several batch sizes; the
        reason why nothing was compared if onnxruntime is not installed.

    Raises:
        LrzipError: The outputs differ by more than rounding; nothing is written.
    """
    nbytes = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
    with _checked_file(destination, ".onnx") as path:
        with silenced():
            torch.onnx.export(
                traced.program,
                (),
                path,
                dynamo=True,
                verbose=False,
                external_data=nbytes >= _PROTOBUF_LIMIT,
                dynamic_shapes=tuple(traced.dynamic),
            )
        if find_spec("onnxruntime") is None:
            return Comparison(not_compared="onnxruntime is not installed. Get it with `pip install 'lrzip-nn[onnx]'`.")
        return _compare(traced, _onnx_runner(path), "onnxruntime")


def _onnx_runner(path: Path) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def outputs(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return outputs


def _compare(traced: Traced, outputs: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], name: str) -> Comparison:
    """Return the largest difference of each output over all runs.

    Raises:
        LrzipError: A difference is more than rounding.
    """
    worst: dict[str, Difference] = {}
    for inputs in traced.runs:
        pairs = zip(outputs_of(traced.network, inputs), outputs(inputs), strict=True)
        for number, (expected, found) in enumerate(pairs):
            difference = difference_of(f"output {number}", expected, found)
            if not difference.relative <= _AGREES:  # NaN does not agree either
                shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
                raise LrzipError(
                    f"Output {number} of {name} differs from the network's by {difference.relative:.1e} of its norm "
                    f"for inputs of {shapes}. That is more than rounding, so nothing was written."
                )
            largest = worst.get(difference.output, difference)
            worst[difference.output] = max(difference, largest, key=attrgetter("relative"))
    if not traced.runs:
        return Comparison(not_compared="the program stores no inputs that are tensors.")
    constant = _constant(traced)
    found_ = [difference for output, difference in worst.items() if output not in constant]
    return Comparison(found_, _text(traced), dependence(constant, "random inputs of these shapes"))


def _constant(traced: Traced) -> Sequence[str]:
    """Return the outputs of the network that do not depend on its inputs."""
    first = traced.runs[0]
    runs = [first, randomized(traced.program, (first, {}), seed=1)[0]]
    try:
        before, after = ([*outputs_of(traced.network, inputs)] for inputs in runs)
    except Exception:  # the network rejects the other inputs, so it depends on them
        return ()
    named = [{f"output {number}": value for number, value in enumerate(values)} for values in (before, after)]
    return constant_outputs(*named)


def _text(traced: Traced) -> str:
    return "inputs of " + ", ".join(" × ".join(map(str, x.shape)) for x in traced.runs[0])


@contextmanager
def _checked_file(destination: Path, suffix: str) -> Iterator[Path]:
    """Yield a path in a temporary folder, whose files are moved to the destination on success.

    Exporters choose the format, and the name of external data, by the name of the file.

    Args:
        destination: Path of the output, of any name.
        suffix: Suffix of the temporary path.
    """
    with atomic_files(destination) as folder:
        path = folder / f"{destination.stem}{suffix}"
        yield path
        path.replace(folder / destination.name)
