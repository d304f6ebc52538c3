"""Open a checkpoint of any known format."""

import re
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.options import Key
from lrzip.formats import FORMATS
from lrzip.formats.files.readable import readable
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.protocols import Checkpoint, External, Format


def open_checkpoint(path: Path, *, key: Key = None, trust: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: File, or folder with sharded weights.
        key: Dotted name of the entry that holds the weights, to override the default choice.
        trust: Whether reading may execute code from the file.

    Raises:
        UnsupportedCheckpoint: The path is missing, damaged, or not a checkpoint that can be read.
        UntrustedFile: Reading the file would execute code from it, and `trust` is False.
    """
    if not path.exists():
        raise _missing(path)
    with readable(path):
        before = Snapshot.of(path)
        for name in FORMATS:
            format_: Format = FORMATS[name]
            if format_.matches(path):
                checkpoint = format_.open(path, key=key, trust=trust)
                beside = checkpoint.data_files if isinstance(checkpoint, External) else ()
                checkpoint.snapshot = before | Snapshot.of_all(beside)
                return checkpoint
    raise UnsupportedCheckpoint(
        f"`{path}` is not a checkpoint that lrzip knows. It reads safetensors, ONNX, and the files of torch.save and "
        "torch.export."
    )


def _missing(path: Path) -> UnsupportedCheckpoint:
    """Return the error for a path that does not exist, which may be the name of a model on the Hugging Face hub."""
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists()
    if not is_hub_name or path.suffix.lower() in {suffix for name in FORMATS for suffix in FORMATS[name].suffixes}:
        return UnsupportedCheckpoint(f"`{path}` does not exist. Check the name.")
    return UnsupportedCheckpoint(
        f"`{path}` does not exist. For the model of that name on the Hugging Face hub, give a local folder: "
        f"`hf download {path} --local-dir {path.name}`."
    )
