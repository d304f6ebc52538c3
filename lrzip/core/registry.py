"""Names of plug-ins, imported on first use."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lrzip.core.errors import UnknownName


class Registry(Mapping[str, Any]):
    """A read-only mapping from a name to the object at `module:object`.

    Listing the names imports nothing, so `--help` can show them at no cost.
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
