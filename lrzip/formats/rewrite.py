"""Write a checkpoint with tuned tensors in place of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lrzip.core.plan import Entry
from lrzip.formats.protocols import Checkpoint
from lrzip.formats.write import create


def write_state(
    destination: Path,
    checkpoint: Checkpoint,
    layout: Sequence[Entry],
    names: Mapping[str, str],
    state: Mapping[str, Tensor],
    *,
    format_: str,
    drop: Sequence[str],
) -> None:
    """Write a layout with the tensors of a network's state, in the dtypes of the layout; all else is copied.

    Args:
        destination: Where to write.
        checkpoint: What it is made from.
        layout: Every tensor of the output.
        names: Of the network's tensors, by those of the output; what has none is copied.
        state: Of the network.
        format_: Registered name of the output's format.
        drop: Other entries of the checkpoint that are left out.

    Raises:
        LrzipError: It could not be written.
    """
    entries = [replace(entry, copied=entry.spec.name not in names) for entry in layout]
    with create(destination, checkpoint, entries, format_=format_, drop=drop) as writer:
        for entry in entries:
            if not entry.copied:
                tensor = state[names[entry.spec.name]]
                writer.put(entry.spec.name, tensor.to(getattr(torch, entry.spec.dtype)))
