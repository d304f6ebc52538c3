"""Write traced programs as `.pt2` or ONNX files, which are checked before they appear."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.report import Difference
from lrzip.formats.files.atomic import atomic_file
from lrzip.networks.inputs import outputs_of
from lrzip.networks.programs.run import difference_of
from lrzip.networks.programs.trace import Traced, quiet

# Share of an output's norm by which another order of float32 sums may change it, with room for deep networks.
_AGREES = 1e-3
_PROTOBUF_LIMIT = 1 << 31


def save_pt2(traced: Traced, destination: Path) -> Sequence[Difference]:
    """Write a program, after loading it again and comparing it with the network.

    Returns:
        By how much its outputs differ from the network's, each the largest over some batch sizes.
    """
    with _checked_file(destination, ".pt2") as path:
        with quiet():
            torch.export.save(traced.program, path)
            loaded = torch.export.load(path).module()
        return _compare(traced, lambda inputs: outputs_of(loaded, inputs), "the program")


def save_onnx(traced: Traced, destination: Path) -> Sequence[Difference] | None:
    """Write an ONNX model, after running it beside the network.

    Above 2 GB, which protobuf cannot hold, weights go into `NAME.data` beside it.

    Returns:
        As `save_pt2`; None if onnxruntime is not installed, so that nothing could be compared.
    """
    nbytes = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
    with _checked_file(destination, ".onnx") as path:
        with quiet():
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
    import onnxruntime  # noqa: TID251  (to check what was written)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def outputs(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return outputs


def _compare(traced: Traced, outputs: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], what: str) -> list[Difference]:
    """Return the largest differences from the network, over all runs.

    Raises:
        LrzipError: They are more than rounding.
    """
    worst: dict[str, Difference] = {}
    for inputs in traced.runs:
        for number, (expected, found) in enumerate(
            zip(outputs_of(traced.network, inputs), outputs(inputs), strict=True)
        ):
            difference = difference_of(f"output {number}", expected, found)
            if not difference.relative <= _AGREES:
                raise LrzipError(
                    f"Output {number} of {what} is {difference.relative:.1e} away from the network's for inputs of "
                    f"{', '.join(str(tuple(x.shape)) for x in inputs)}: more than rounding, so nothing was written."
                )
            worst[difference.output] = max(difference, worst.get(difference.output, difference), key=_relative)
    return list(worst.values())


def _relative(difference: Difference) -> float:
    return difference.relative


@contextmanager
def _checked_file(destination: Path, suffix: str) -> Iterator[Path]:
    """Yield a path of the right suffix in a temporary folder; what is there moves to the destination on success."""
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
                    f"`{destination.with_name(extra.name)}` exists, and the weights would go there. Move it."
                )
            extra.replace(destination.with_name(extra.name))
        path.replace(temporary)
