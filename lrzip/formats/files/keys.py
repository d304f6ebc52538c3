"""Refuse the name of an entry for formats whose files have no entries."""

from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.options import Key


def shown(key: Key) -> str:
    """Return one or several names of entries as text."""
    return key if isinstance(key, str) else ", ".join(key or ())


def refuse_key(path: Path, key: Key, kind: str) -> None:
    """Refuse a key for a file without entries to choose from.

    Args:
        path: Path of the file, for the message.
        key: Dotted name of an entry, or None.
        kind: Kind of the file, for the message.

    Raises:
        UnsupportedCheckpoint: A key was given.
    """
    if key:
        raise UnsupportedCheckpoint(f"`{path}` is {kind} and has no entries, so `key={shown(key)}` names nothing.")
