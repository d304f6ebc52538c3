"""Write a checkpoint with layers replaced, in any format."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from lrzip.core.chains import Factors
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.layers import Layer
from lrzip.core.plan import Entry, Plan
from lrzip.formats import FORMATS
from lrzip.formats.outputs import output_format
from lrzip.formats.protocols import Checkpoint, Format, Writer


class Rewriter:
    """Writes a checkpoint with layers replaced."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def put(self, layer: Layer, factors: Factors) -> None:
        """Write the chain that replaces a layer."""
        for index, weight in enumerate(factors.weights):
            self._writer.put(layer.key(f"{index}.weight"), weight)


@contextmanager
def create(
    destination: Path, source: Checkpoint, layout: Sequence[Entry], *, format_: str, drop: Sequence[str] = ()
) -> Iterator[Writer]:
    """Write a layout in a registered format, without the entries `drop`; it appears when all went well."""
    target: Format = FORMATS[format_]
    if format_ != source.format:
        _refuse_unrecognizable(destination, source, layout)
    try:
        with target.write(destination, source, layout, drop=drop) as writer:
            yield writer
    except OSError as error:
        advice = " Free some space and run it again." if error.errno == errno.ENOSPC else ""
        raise LrzipError(f"Could not write `{destination}`: {error.strerror or error}.{advice}") from error


def _refuse_unrecognizable(destination: Path, source: Checkpoint, layout: Sequence[Entry]) -> None:
    """Refuse factors that only the source's format can tell from those of a linear layer."""
    chains = {f"{module}.0.weight": kind for module, kind in (source.chain_kinds or {}).items()}
    found = next((e for e in layout if "linear_transposed" in (e.kind, chains.get(e.spec.name))), None)
    if found:
        raise UnsupportedCheckpoint(
            f"`{destination}` could not tell the factors of `{found.spec.name}`, of transformers' Conv1D, from "
            "those of a linear layer. Write a folder, or `--to dense`."
        )


@contextmanager
def rewrite(
    destination: Path,
    source: Checkpoint,
    plan: Plan,
    *,
    drop: Sequence[str] = (),
    changed: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[Rewriter]:
    """Write a checkpoint with the layers of a plan replaced, and tensors changed; all else is copied as it is."""
    layout = plan.layout(source.tensors(), changed)
    format_ = output_format(destination, source.format)
    with create(destination, source, layout, format_=format_, drop=drop) as writer:
        yield Rewriter(writer)
        for entry in layout:
            if entry.origin in changed:
                writer.put(entry.spec.name, changed[entry.origin])
