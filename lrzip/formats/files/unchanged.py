"""Check that a source is the same file at the end as at the beginning, so that no output mixes two versions of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.claims import Identity


@dataclass(frozen=True)
class Snapshot:
    """The identities of the files of a source at one time.

    Attributes:
        files: Identities by path; None for a file that did not exist.
    """

    files: Mapping[Path, Identity | None] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> "Snapshot":
        """Return a snapshot of a file, or of the files in a folder."""
        return cls.of_all([file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path])

    @classmethod
    def of_all(cls, paths: Iterable[Path]) -> "Snapshot":
        """Return a snapshot of files."""
        return cls({path.absolute(): Identity.of(path) for path in paths})

    def __or__(self, other: "Snapshot") -> "Snapshot":
        """Return a snapshot of the files of two."""
        return Snapshot({**self.files, **other.files})

    def refuse_changes(self) -> None:
        """Refuse files that were written, replaced or removed since.

        Raises:
            UnsupportedCheckpoint: A file is not what it was.
        """
        for path, before in self.files.items():
            now = Identity.of(path)
            if before is not None and now is not None and now.size < before.size:
                raise UnsupportedCheckpoint(f"`{path}` became shorter while it was read. Run it again.")
            if now != before:
                raise UnsupportedCheckpoint(f"`{path}` was changed while it was read. Run it again.")
