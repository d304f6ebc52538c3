"""Registries of named objects that are imported on first use."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lrzip.core.errors import UnknownName


class Registry(Mapping[str, Any]):
    """Read-only mapping from names to the objects at `module:object`.

    Listing the names imports nothing, so that `--help` stays fast.

    Args:
        noun: Noun for an entry in messages.
        entries: Location of each object by name.
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self._noun = noun
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise UnknownName(f"Unknown {self._noun} `{name}`. Choose one of: {', '.join(sorted(self._entries))}.")
        module, attribute = self._entries[name].split(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
