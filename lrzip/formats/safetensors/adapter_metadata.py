"""Metadata of safetensors files that describe an adapter: configurations of diffusers, and ranks of kohya's tools."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrzip.core.documents import Place, Record, parse_json, record
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.safetensors.adapter_config import AdapterConfig

_CONFIGS = "lora_adapter_metadata"
_RANK, _ALPHA = "ss_network_dim", "ss_network_alpha"
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class AdapterMetadata:
    """Metadata of a file.

    Attributes:
        metadata: All strings.
        configs: Configurations of PEFT, by the first part of the names of the modules that they describe.
    """

    metadata: Mapping[str, str]
    configs: Mapping[str, AdapterConfig]

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: Path) -> "AdapterMetadata":
        """Return the metadata of a file.

        Raises:
            UnsupportedCheckpoint: A configuration is malformed.
        """
        if _CONFIGS not in metadata:
            return cls(metadata, {})
        place = Place(f"`{_CONFIGS}` in `{path}`", "Fetch the file again.", UnsupportedCheckpoint)
        found: dict[str, dict[str, Any]] = {}
        for key, value in record(parse_json(metadata[_CONFIGS], place), place).fields.items():
            prefix, _, name = key.partition(".")
            found.setdefault(prefix, {})[name] = value
        return cls(metadata, {prefix: AdapterConfig.of(Record(f, place.at(prefix))) for prefix, f in found.items()})

    def obstacle(self, module: str, rank: int) -> str | None:
        """Return why the pair of a module cannot get another rank, or None."""
        config, path = self._config_of(module)
        return config.obstacle(path, rank) if config else None

    def scale(self, module: str) -> float | None:
        """Return the factor of the product of a module; None if no configuration states it."""
        config, path = self._config_of(module)
        return config.scale(path) if config else None

    def resized(self, ranks: Mapping[str, int], alphas: Collection[float]) -> dict[str, str]:
        """Return the metadata of an output.

        Args:
            ranks: New rank of every adapted module.
            alphas: New alpha of every module that has one.
        """
        result = {name: text for name, text in self.metadata.items() if name not in _HASHES}
        described = ((_RANK, ranks.values()), (_ALPHA, alphas))
        result |= {name: _common(values) for name, values in described if name in result and values}
        if self.configs:
            documents = {
                prefix: config.resized(own) if (own := _below(prefix, ranks)) else dict(config.document)
                for prefix, config in self.configs.items()
            }
            flat = {f"{prefix}.{name}": v for prefix, fields in documents.items() for name, v in fields.items()}
            result[_CONFIGS] = json.dumps(flat, indent=2, sort_keys=True)
        return result

    def _config_of(self, module: str) -> tuple[AdapterConfig | None, str]:
        prefix, _, path = module.partition(".")
        return self.configs.get(prefix), path


def _below(prefix: str, ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks of the modules below a prefix, by the rest of their names."""
    start = f"{prefix}."
    return {module.removeprefix(start): rank for module, rank in ranks.items() if module.startswith(start)}


def _common(values: Collection[float]) -> str:
    """Return the value that all modules have, or `Dynamic`, as kohya's tools do."""
    found = set(values)
    return f"{found.pop():g}" if len(found) == 1 else "Dynamic"
