"""Write a checkpoint with layers replaced by their factors, in any format."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from lrzip.core.decisions import Factorize
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.factors import GroupFactors
from lrzip.core.layout import Entry
from lrzip.core.plan import Plan
from lrzip.formats import FORMATS
from lrzip.formats.adapters import Adapter, AdapterWriter
from lrzip.formats.files.claims import checked_before
from lrzip.formats.files.space import check_space
from lrzip.formats.outputs import output_format
from lrzip.formats.protocols import Checkpoint, Format, Writer


class Rewriter:
    """Receives the factors of layers while a checkpoint is written."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def put(self, decision: Factorize, found: GroupFactors) -> None:
        """Write the factors that replace the layers of a decision."""
        weights = [weight for factors in found.members for weight in factors.weights]
        for spec, weight in zip(decision.outputs, weights, strict=True):
            self._writer.put(spec.name, weight)
        for name, tensor in found.others.items():
            self._writer.put(name, tensor)


@contextmanager
def create(
    destination: Path, source: Checkpoint, layout: Sequence[Entry], *, format_: str, drop: Sequence[str] = ()
) -> Iterator[Writer]:
    """Write a layout in a registered format; the output appears when the context exits without an error.

    Args:
        destination: Path of the output.
        source: Checkpoint that copied tensors and entries come from.
        layout: Every tensor of the output.
        format_: Registered name of the output's format.
        drop: Entries of the source that are not copied.

    Raises:
        LrzipError: The output could not be written.
    """
    if isinstance(source, Adapter):
        stored = source.described(layout)
        with create(destination, stored, source.split(layout), format_=format_, drop=drop) as writer:
            yield AdapterWriter(source, writer)
        return
    target: Format = FORMATS[format_]
    if not layout:
        raise UnsupportedCheckpoint(f"`{source.path}` has no tensors that can be read, so nothing was written.")
    if not target.stores_kinds:
        _refuse_unrecognizable(destination, source, layout)
    try:
        check_space(destination, sum(entry.spec.nbytes for entry in layout))
        with (
            checked_before(destination, source.snapshot.refuse_changes),
            target.write(destination, source, layout, drop=drop) as writer,
        ):
            yield writer
    except OSError as error:
        advice = " Free some space and run it again." if error.errno == errno.ENOSPC else ""
        raise LrzipError(f"Could not write `{destination}`: {error.strerror or error}.{advice}") from error
    except RecursionError as error:
        raise LrzipError(f"`{source.path}` nests its entries too deeply to be written.") from error


def _refuse_unrecognizable(destination: Path, source: Checkpoint, layout: Sequence[Entry]) -> None:
    """Refuse factors of transposed linear layers, which, without their kind, would be taken for linear ones."""
    stored = {f"{module}.0.weight": layer.kind for module, layer in (source.dense_layers or {}).items()}
    kinds = ((entry, entry.kind or stored.get(entry.spec.name)) for entry in layout)
    found = next((entry for entry, kind in kinds if kind and kind.is_stored_transposed), None)
    if found:
        raise UnsupportedCheckpoint(
            f"`{destination}` cannot distinguish the factors of `{found.spec.name}`, a Conv1D of transformers, from "
            "those of a linear layer. Write a folder, or `to=dense`."
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
    """Write a checkpoint with the layers of a plan replaced; everything else is copied unchanged.

    Args:
        destination: Path of the output.
        source: Checkpoint to rewrite.
        plan: Layers to replace; their factors are passed to the `Rewriter`.
        drop: Entries of the source that are not copied.
        changed: New values of other tensors, such as corrected biases, by name.
    """
    layout = plan.layout(source.tensors(), changed)
    format_ = output_format(destination, source.format)
    with create(destination, source, layout, format_=format_, drop=drop) as writer:
        yield Rewriter(writer)
        for entry in layout:
            if entry.origin in changed:
                writer.put(entry.spec.name, changed[entry.origin])
