"""Open a checkpoint of any known format."""

from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats import FORMATS
from lrzip.formats.files.readable import readable
from lrzip.formats.protocols import Checkpoint, Format


def open_checkpoint(path: Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: A file, or a folder with sharded weights.
        key: Dotted name of the entry that holds the weights, where the default choice is not the wanted one.
        trust: Allow what would run code from the file.

    Raises:
        UnsupportedCheckpoint: It is missing, damaged, or not a checkpoint that can be read.
        UntrustedFile: Reading it would run code, and `trust` is not given.
    """
    if not path.exists():
        raise UnsupportedCheckpoint(f"`{path}` does not exist. Check the name.")
    with readable(path):
        for name in FORMATS:
            format_: Format = FORMATS[name]
            if format_.matches(path):
                return format_.open(path, key=key, trust=trust)
    raise UnsupportedCheckpoint(
        f"`{path}` is no checkpoint that lrzip knows. It reads safetensors, torch.save's and torch.export's files."
    )
