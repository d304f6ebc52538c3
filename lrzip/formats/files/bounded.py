"""Read a file without allocating more than it has, whatever lengths its content claims."""

import os
from pathlib import Path


class BoundedReader:
    """A file that is read by its descriptor, as a binary file that `pickletools` accepts.

    A file that is mapped into memory instead would end the process when another one makes it shorter.

    Args:
        path: The file.

    Attributes:
        size: Size of the file in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, count: int = -1) -> bytes:
        """Read at most `count` bytes, or all that are left."""
        left = max(self.size - self._file.tell(), 0)
        return self._file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        """Read a line."""
        return self._file.readline()

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def seek(self, position: int) -> None:
        """Move to a position."""
        self._file.seek(position)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
