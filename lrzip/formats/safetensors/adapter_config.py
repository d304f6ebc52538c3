"""The `adapter_config.json` of PEFT: the scale of each adapted layer, and the ranks of an output."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

from lrzip.core.documents import Place, Record, flag, mapping, number, read_json, text, whole
from lrzip.core.errors import UnsupportedCheckpoint

V = TypeVar("V")

ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
# Initializations that leave the weights of the base model as they are; others subtract the first adapter from them.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# Variants of LoRA whose adapters are no products alone.
_VARIANTS = ("arrow_config", "corda_config", "kasa_config", "lora_ga_config", "monteclora_config", "use_bdlora")
# Default values of PEFT.
_RANK, _ALPHA = 8, 8


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of an adapter.

    Attributes:
        document: Its content.
        rank: Rank of the layers that no pattern of `ranks` matches.
        alpha: Numerator of the scale of the layers that no pattern of `alphas` matches.
        ranks: Ranks by pattern.
        alphas: Numerators by pattern.
        is_root_scaled: Whether the scale is alpha / √rank, as in rsLoRA, instead of alpha / rank.
    """

    document: Mapping[str, Any]
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_root_scaled: bool

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read the configuration in a folder.

        Raises:
            UnsupportedCheckpoint: A field that is used has the wrong type.
        """
        path = folder / ADAPTER_CONFIG
        return cls.of(read_json(path, Place(f"`{path}`", "Fetch the file again.", UnsupportedCheckpoint)))

    @classmethod
    def of(cls, found: Record) -> "AdapterConfig":
        """Return the configuration in a document."""
        if found.find("peft_type", text) not in (None, "LORA"):
            return cls(found.fields, _RANK, _ALPHA, {}, {}, False)  # fields of the same names mean something else there
        return cls(
            found.fields,
            found.find("r", whole(1)) or _RANK,
            _or(found.find("lora_alpha", number()), _ALPHA),
            found.find("rank_pattern", mapping(whole(1))) or {},
            found.find("alpha_pattern", mapping(number())) or {},
            found.find("use_rslora", flag) or False,
        )

    def obstacle(self, module: str, rank: int) -> str | None:
        """Return why the factors of a module cannot get another rank, or None.

        Args:
            module: Path of the module in the names of the file.
            rank: Rank of its factors.
        """
        kind = self.document.get("peft_type", "LORA")
        start = self.document.get("init_lora_weights")
        if kind != "LORA":
            return f"a part of an adapter of type {kind}; only LoRA can get another rank"
        if start not in _PLAIN_STARTS:
            return f"a LoRA pair with `init_lora_weights={start}`, which changes the base model by its rank"
        variant = next((name for name in _VARIANTS if self.document.get(name)), None)
        if variant:
            return f"a LoRA pair with `{variant}`, which depends on its rank in another way"
        if self._rank_of(module) != rank:
            return f"a LoRA pair of rank {rank} where `{ADAPTER_CONFIG}` gives rank {self._rank_of(module)}"
        return None if self.scale(module) else "a LoRA pair of scale 0"

    def scale(self, module: str) -> float:
        """Return the factor of the product of a module."""
        alpha, rank = _match(self.alphas, _path(module), self.alpha), self._rank_of(module)
        return alpha / (sqrt(rank) if self.is_root_scaled else rank)

    def resized(self, ranks: Mapping[str, int]) -> dict[str, Any]:
        """Return the document with other ranks and the same scales.

        Args:
            ranks: New rank of every adapted module, by its path in the names of the file.
        """
        new = {_path(module): rank for module, rank in ranks.items()}
        alphas = {_path(module): self._alpha_for(self.scale(module), rank) for module, rank in ranks.items()}
        (rank, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (new, alphas))
        patterns = {"rank_pattern": _patterns(new, rank), "alpha_pattern": _patterns(alphas, alpha)}
        return {**self.document, "r": rank, "lora_alpha": alpha, **patterns}

    def _rank_of(self, module: str) -> int:
        return _match(self.ranks, _path(module), self.rank)

    def _alpha_for(self, scale: float, rank: int) -> float:
        alpha = scale * (sqrt(rank) if self.is_root_scaled else rank)
        return int(alpha) if alpha == int(alpha) else alpha


def _path(module: str) -> str:
    """Return the path of a module in the model that is adapted."""
    return module.removeprefix(_PREFIX)


def _match(patterns: Mapping[str, V], path: str, default: V) -> V:
    """Return the value of the first pattern that matches the end of a path, as PEFT does."""
    return next((value for pattern, value in patterns.items() if _ends_with(path, pattern)), default)


def _ends_with(path: str, pattern: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error:  # PEFT could not have written a file of this configuration
        return False


def _patterns(values: Mapping[str, V], default: V) -> dict[str, V]:
    """Return patterns that give each path its value: longest first, since a pattern also matches longer paths."""
    longest = sorted(values, key=len, reverse=True)
    short = {re.escape(path): values[path] for path in longest if values[path] != default}
    if all(_match(short, path, default) == value for path, value in values.items()):
        return short
    return {re.escape(path): values[path] for path in longest}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
