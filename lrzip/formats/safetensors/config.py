"""The `config.json` of a folder of transformers, as a checked document."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrzip.core.documents import Place, each, flag, read_json, record, text, whole
from lrzip.core.errors import UnsupportedCheckpoint

CONFIG = "config.json"
METHOD = "lrzip"
FORMAT_VERSION = 1


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a folder.

    Raises:
        UnsupportedCheckpoint: A field that is used has the wrong type.
    """
    path = folder / CONFIG
    config = read_json(path, Place(f"`{path}`", "Fetch the file again.", UnsupportedCheckpoint))
    config.find("model_type", text)
    config.find("architectures", each(text))
    config.find("tie_word_embeddings", flag)
    config.find("vocab_size", whole())
    quantization = config.find("quantization_config", record)
    if quantization and quantization.find("quant_method", text) == METHOD:
        quantization.find("transposed", each(text))
    return dict(config.fields)


def read_ranks(quantization: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the rank of each factorized layer, by module.

    Args:
        quantization: The `quantization_config` of a compressed folder.
        where: Description of it for messages.

    Raises:
        UnsupportedCheckpoint: It is malformed, or was written by a later version of lrzip.
    """
    version = quantization.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UnsupportedCheckpoint(
            f"{where} has format_version {version!r}, and this lrzip knows {FORMAT_VERSION}. Update lrzip."
        )
    ranks = quantization.get("ranks")
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise UnsupportedCheckpoint(f"{where} has no usable `ranks`: one positive integer for each layer.")
    return ranks
