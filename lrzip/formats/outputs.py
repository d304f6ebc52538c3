"""Names, formats and sizes of outputs, and what they cannot hold."""

from collections.abc import Sequence
from pathlib import Path

from lrzip.core.errors import NotCompared, UsageError
from lrzip.core.report import Difference
from lrzip.formats import FORMATS
from lrzip.formats.protocols import Checkpoint, Guarded, Runnable
from lrzip.formats.torch.nesting import optimizer_entries


def default_output(source: Path) -> Path:
    """Return `model.lrzip.pt` for `model.pt`, and `model.lrzip` for a folder `model`."""
    path = source if source.name else source.absolute()
    return path.with_name(f"{path.name}.lrzip") if path.is_dir() else path.with_name(f"{path.stem}.lrzip{path.suffix}")


def check_program(checkpoint: Checkpoint, format_: str, destination: Path, *, force_factorize: bool) -> None:
    """Refuse to make a program of weights, to name one like something else, and to force what weights cannot have.

    Raises:
        UsageError: In either case.
    """
    suffixes = FORMATS[format_].suffixes
    if FORMATS[format_].is_program and format_ != checkpoint.format:
        raise UsageError(f"`{checkpoint.path}` holds weights and no program, as `{destination}` would. Name another.")
    if FORMATS[format_].is_program and destination.suffix and destination.suffix.lower() not in suffixes:
        wanted = " or ".join(suffixes)
        raise UsageError(f"`{checkpoint.path}` is a program, so the name of `{destination}` must end in {wanted}.")
    if force_factorize and not FORMATS[format_].is_program:
        raise UsageError(
            "`--force-factorize` takes a file with a program, such as ONNX: "
            "chains that are not smaller are not found among weights alone."
        )


def compare(checkpoint: Checkpoint, output: Path) -> tuple[Sequence[Difference], str | None]:
    """Return by how much outputs changed, and why that is not known where it is not; nothing of weights alone."""
    if not isinstance(checkpoint, Runnable):
        return (), None
    try:
        return checkpoint.compare(output), None
    except NotCompared as error:
        return (), str(error)


def size_on_disk(path: Path, format_: str) -> int:
    """Return the bytes of what was written in a format: a file, with what belongs to it, or a folder's weight files."""
    return sum(file.stat().st_size for file in FORMATS[format_].files(path))


def output_format(destination: Path, default: str) -> str:
    """Return the registered name of the format that the suffix of an output names, else the default.

    Where several have the suffix, it is the default, or the most general one: that which is asked last in reading.
    """
    suffix, names = destination.suffix.lower(), [default, *reversed(list(FORMATS))]
    return next((name for name in names if suffix in FORMATS[name].suffixes), default)


def not_carried(format_: str, source: Checkpoint, *, optimizer: bool) -> dict[str, str]:
    """Return what an output will not have beside the tensors, with the reason.

    Args:
        format_: Registered name of the output's format.
        source: What is read.
        optimizer: Whether to leave out the state of an optimizer, which does not fit replaced parameters.
    """
    if source.carries(format_) if isinstance(source, Guarded) else format_ == source.format:
        entries = optimizer_entries(source.others) if optimizer else []
        return dict.fromkeys(entries, "its state no longer fits the parameters")
    if not format_.endswith("safetensors"):
        texts = [f"metadata {name}" for name in source.metadata if name != "format"]  # that is "pt", and still true
        return dict.fromkeys([*texts, *source.others], "a state_dict has no place for it")
    return dict.fromkeys(source.others, "safetensors holds tensors only")
