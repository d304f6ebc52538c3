"""The index of a folder of shards, `model.safetensors.index.json`, as a checked document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrzip.core.documents import Place, mapping, read_json, record, text
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layout import Entry
from lrzip.networks.weights import is_parameter


@dataclass(frozen=True)
class Index:
    """An index of shards.

    Attributes:
        path: Path of its file.
        document: Its content.
        weight_map: Name of the shard that holds each tensor.
        metadata: Its other entries, among them the total size.
    """

    path: Path
    document: Mapping[str, Any]
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Read an index.

        Raises:
            UnsupportedCheckpoint: A field has the wrong type, or a shard is not a file of the same folder.
        """
        place = Place(f"`{path}`", "Fetch the file again.", UnsupportedCheckpoint)
        document = read_json(path, place, unique=True)
        weight_map = document.read("weight_map", mapping(_file_name))
        if not weight_map:
            raise place.at("weight_map").fault("names no tensors")
        metadata = document.find("metadata", record)
        return cls(path, document.fields, weight_map, metadata.fields if metadata else {})

    @property
    def shards(self) -> Sequence[str]:
        """Names of the shards."""
        return list(dict.fromkeys(self.weight_map.values()))

    def rewritten(self, layout: Sequence[Entry], shards: Mapping[str, str]) -> str:
        """Return the text of the index of an output.

        Args:
            layout: Every tensor of the output.
            shards: Name of the shard of each tensor of the output.
        """
        metadata = {**self.metadata, "total_size": sum(entry.spec.nbytes for entry in layout)}
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(entry.spec.numel for entry in layout if is_parameter(entry.spec))
        weight_map = {entry.spec.name: shards[entry.spec.name] for entry in layout}
        return json.dumps({**self.document, "metadata": metadata, "weight_map": weight_map}, indent=2) + "\n"


def _file_name(value: Any, place: Place) -> str:
    """Read the name of a file in the folder of the index."""
    name = text(value, place)
    if Path(name).name != name or set(name) & {"\\", "\0"} or name in ("", ".", ".."):
        raise place.wrong("a file of its own folder", name)
    return name
