"""Refuse a path that does not exist, which may be the name of a model on the Hugging Face hub."""

import re
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats import FORMATS


def refuse_missing(path: Path) -> None:
    """Refuse a path that does not exist.

    Raises:
        UnsupportedCheckpoint: It does not exist. For a name of the hub, the message says how to download the model.
    """
    if path.exists():
        return
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists()
    if not is_hub_name or path.suffix.lower() in {suffix for name in FORMATS for suffix in FORMATS[name].suffixes}:
        raise UnsupportedCheckpoint(f"`{path}` does not exist. Check the name.")
    raise UnsupportedCheckpoint(
        f"`{path}` does not exist. For the model of that name on the Hugging Face hub, give a local folder: "
        f"`hf download {path} --local-dir {path.name}`."
    )
