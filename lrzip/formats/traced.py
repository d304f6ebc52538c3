"""Write traced programs as `.pt2` or ONNX files, which are checked against the network before they appear."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.report import Difference
from lrzip.formats.files.atomic import atomic_file
from lrzip.networks.inputs import outputs_of
from lrzip.networks.programs.run import difference_of
from lrzip.networks.programs.silence import silenced
from lrzip.networks.programs.trace import Traced

# Tolerated relative difference of an output: float32 sums in another order, with room for deep networks.
_AGREES = 1e-3
_PROTOBUF_LIMIT = 1 << 31


def save_pt2(traced: Traced, destination: Path) -> Sequence[Difference]:
    """Write a program after loading it again and comparing its outputs with those of the network.

    Args:
        traced: The program and its network.
        destination: Path of the output.

    Returns:
        One difference per output of the network, the largest over several batch sizes.

    Raises:
        LrzipError: The outputs differ by more than rounding; nothing is written.
    """
    with _checked_file(destination, ".pt2") as path:
        with silenced():
            torch.export.save(traced.program, path)
            loaded = torch.export.load(path).module()
        return _compare(traced, lambda inputs: outputs_of(loaded, inputs), "the program")


def save_onnx(traced: Traced, destination: Path) -> Sequence[Difference] | None:
    """Write an ONNX model after comparing its outputs in onnxruntime with those of the network.

    Above 2 GB, the limit of protobuf, the weights are written to `NAME.data` beside the model.

    Args:
        traced: The program and its network.
        destination: Path of the output.

    Returns:
        One difference per output of the network, the largest over several batch sizes; None if onnxruntime is not
        installed, so that nothing was compared.

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
            return None
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


def _compare(traced: Traced, outputs: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], name: str) -> list[Difference]:
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
    return list(worst.values())


@contextmanager
def _checked_file(destination: Path, suffix: str) -> Iterator[Path]:
    """Yield a path in a temporary folder, whose files are moved to the destination on success.

    Exporters choose the format, and the name of external data, by the name of the file.

    Args:
        destination: Path of the output, of any name.
        suffix: Suffix of the temporary path.
    """
    with (
        atomic_file(destination) as temporary,
        TemporaryDirectory(prefix=".lrzip-", dir=destination.absolute().parent) as folder,
    ):
        path = Path(folder) / f"{destination.stem}{suffix}"
        yield path
        beside = [extra for extra in Path(folder).iterdir() if extra != path]
        for extra in beside:
            if destination.with_name(extra.name).exists():
                raise LrzipError(
                    f"`{destination.with_name(extra.name)}` exists, and the weights would be written there. Move it."
                )
            extra.replace(destination.with_name(extra.name))
        path.replace(temporary)
