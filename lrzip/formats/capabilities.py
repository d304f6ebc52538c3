"""Protocols of what checkpoints and formats of some kinds state about themselves."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from lrzip.core.structure import Structure


@runtime_checkable
class Restricted(Protocol):
    """A checkpoint some of whose tensors must not be replaced, whatever layer they belong to."""

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        ...


@runtime_checkable
class Folder(Protocol):
    """A checkpoint in a folder with other files."""

    @property
    def files(self) -> Mapping[str, int]:
        """Sizes in bytes of the other files, by relative path."""
        ...

    def left_out(self) -> Mapping[str, str]:
        """Return the other files that do not fit an output with other weights, with the reason."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A format whose files cannot hold every structure in place of a layer."""

    def obstacle(self, structure: Structure) -> str | None:
        """Return why files cannot hold a structure, or None if they can."""
        ...
