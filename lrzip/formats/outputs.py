"""Names, formats and sizes of outputs, and the entries of a source that an output cannot hold."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lrzip.core.errors import NotCompared, UsageError
from lrzip.core.report import Comparison
from lrzip.core.structure import Structure
from lrzip.formats import FORMATS
from lrzip.formats.capabilities import Folder, Selective
from lrzip.formats.files.atomic import is_stream
from lrzip.formats.protocols import Checkpoint, Format, Noted, Runnable, entry_of
from lrzip.formats.torch.nesting import optimizer_entries


def default_output(source: Path) -> Path:
    """Return the default name of an output: `model.lrzip.pt` for `model.pt`, `model.lrzip` for a folder `model`."""
    path = source if source.name else source.absolute()
    return path.with_name(f"{path.name}.lrzip") if path.is_dir() else path.with_name(f"{path.stem}.lrzip{path.suffix}")


def check_program(checkpoint: Checkpoint, format_: str, destination: Path, *, force_factorize: bool) -> None:
    """Check that the output's name and options fit the kind of the source, a program or weights.

    Args:
        checkpoint: Source of the output.
        format_: Registered name of the output's format.
        destination: Path of the output.
        force_factorize: Whether layers are factorized even if that makes them larger.

    Raises:
        UsageError: A program would be written from weights, a program would get the suffix of another format, or
            factors that are not smaller would be written to a file without a program.
    """
    target: Format = FORMATS[format_]
    if target.is_program and format_ != checkpoint.format:
        raise UsageError(f"`{checkpoint.path}` holds weights and no program, as `{destination}` would. Name another.")
    if target.is_program and destination.suffix and destination.suffix.lower() not in target.suffixes:
        wanted = " or ".join(target.suffixes)
        raise UsageError(f"`{checkpoint.path}` is a program, so the name of `{destination}` must end in {wanted}.")
    if force_factorize and not target.is_program:
        raise UsageError(
            "`force_factorize` takes a file with a program, such as ONNX: "
            "chains that are not smaller are not found among weights alone."
        )


def compare(checkpoint: Checkpoint, output: Path) -> Comparison:
    """Return how much the outputs of a program changed, or the reason why that is not known.

    The comparison of a checkpoint that holds only weights is empty.
    """
    if not isinstance(checkpoint, Runnable):
        return Comparison()
    try:
        return checkpoint.compare(output)
    except NotCompared as error:
        return Comparison(not_compared=str(error))


def notes_of(checkpoint: Checkpoint) -> Sequence[str]:
    """Return what users should know about the output of a checkpoint beside its report."""
    return checkpoint.notes if isinstance(checkpoint, Noted) else ()


def size_on_disk(path: Path, format_: str) -> int:
    """Return the size in bytes of an output, for a folder that of all its files; 0 for a pipe or device."""
    if is_stream(path):
        return 0
    target: Format = FORMATS[format_]
    return sum(file.stat().st_size for file in target.files(path))


def obstacle_of(format_: str) -> Callable[[Structure], str | None]:
    """Return a function that states why the files of a format cannot hold a structure, or None if they can."""
    target = FORMATS[format_]
    return target.obstacle if isinstance(target, Selective) else lambda _: None


def usage_of(format_: str) -> str | None:
    """Return how to load an output with factorized layers in a format, or None if nothing is needed."""
    usage: str | None = FORMATS[format_].usage
    return usage


def output_format(destination: Path, default: str) -> str:
    """Return the registered name of the format that an output's suffix selects, or the default.

    If several formats share the suffix, the default is preferred, then the most general format, which is the last in
    the registry.
    """
    suffix, names = destination.suffix.lower(), [default, *reversed(list(FORMATS))]
    return next((name for name in names if suffix in FORMATS[name].suffixes), default)


def target_format(destination: Path, to: str, default: str) -> str:
    """Return the registered name of the format of an export.

    Args:
        destination: Output, whose suffix names the format.
        to: `safetensors`, `state-dict`, or `dense`, which has the format of its source.
        default: Format of the source.

    Raises:
        UsageError: The suffix names another format than the target.
    """
    wanted = {"safetensors": "safetensors", "state-dict": "state_dict"}.get(to)
    found = output_format(destination, wanted or default)
    if wanted and found != wanted:
        raise UsageError(f"`to={to}` does not write {destination.suffix} files, got `{destination}`.")
    return found


def not_carried(format_: str, source: Checkpoint, *, optimizer: bool, others: bool = True) -> dict[str, str]:
    """Return the entries beside the tensors, and the other files of a folder, that an output will lack, with reasons.

    Args:
        format_: Registered name of the output's format.
        source: Source of the output.
        optimizer: Whether to drop the states of optimizers, which do not fit replaced parameters.
        others: Whether to drop the files of a folder that do not fit replaced parameters.
    """
    if format_ == source.format and isinstance(source, Folder):
        lost = dict.fromkeys(source.others, "safetensors holds tensors only")
        return lost | (dict(source.left_out()) if others else {})
    if format_ == source.format and source.is_rewritable:
        entries = optimizer_entries(source.others) if optimizer else []
        return dict.fromkeys(entries, "its state no longer fits the parameters")
    if FORMATS[format_].holds_metadata:
        reasons = dict.fromkeys(source.others, "safetensors holds tensors only")
    else:
        strings = [f"metadata {name}" for name in source.metadata if name != "format"]  # "format" is always "pt"
        reasons = dict.fromkeys([*strings, *source.others], "a state_dict has no place for it")
    rivals = entry_of(source).others
    holds = {name for name in reasons if any(rival == name or rival.startswith(f"{name}.") for rival in rivals)}
    return reasons | dict.fromkeys(holds, "weights of another entry")


def nbytes_of(source: Checkpoint, dropped: Iterable[str]) -> int:
    """Return the size in bytes of a source without the files that an output leaves out."""
    files = source.files if isinstance(source, Folder) else {}
    return source.nbytes - sum(files.get(name, 0) for name in dropped)
