"""Zip archives that torch wrote: members stored as they are, none of which points outside."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from lrzip.errors import UnsupportedCheckpoint


def checked_members(path: Path) -> Sequence[zipfile.ZipInfo]:
    """Return the members of an archive, none of which unpacks to more than it is.

    Raises:
        UnsupportedCheckpoint: It has what torch never writes: compressed members, path-like names, two of one name, or
            more bytes than the file.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedCheckpoint(
                f"`{path}` has a compressed member `{member.filename}`, which torch.save never writes."
            )
        if member.filename.startswith("/") or ".." in Path(member.filename).parts:
            raise UnsupportedCheckpoint(f"`{path}` has a member `{member.filename}` that points outside of it.")
    if len({member.filename for member in members}) < len(members):
        raise UnsupportedCheckpoint(f"`{path}` has two members of the same name.")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UnsupportedCheckpoint(f"`{path}` claims more bytes than it has.")
    return members
