"""Write a checkpoint with the trained tensors of a network in place of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lrzip.core.layout import Entry
from lrzip.formats.protocols import Checkpoint
from lrzip.formats.write import create


def write_state(
    destination: Path,
    checkpoint: Checkpoint,
    layout: Sequence[Entry],
    tensors: Mapping[str, Tensor],
    *,
    format_: str,
    drop: Sequence[str],
) -> None:
    """Write a layout with the tensors of a network, cast to the dtypes of the layout.

    Args:
        destination: Path of the output.
        checkpoint: Source of all other tensors, and of everything else.
        layout: Every tensor of the output.
        tensors: Tensors of the network, by their names in the output.
        format_: Registered name of the output's format.
        drop: Entries of the checkpoint that are not copied.

    Raises:
        LrzipError: The output could not be written.
    """
    entries = [replace(entry, copied=entry.spec.name not in tensors) for entry in layout]
    with create(destination, checkpoint, entries, format_=format_, drop=drop) as writer:
        for entry in entries:
            if not entry.copied:
                writer.put(entry.spec.name, tensors[entry.spec.name].to(getattr(torch, entry.spec.dtype)))
