"""Which files of a folder hold its weights, in the order of precedence of transformers and diffusers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.safetensors.index import Index

# Stems that `from_pretrained` looks for, of transformers and of diffusers; a complete file comes before an index.
_STEMS = {".safetensors": ("model", "diffusion_pytorch_model"), ".bin": ("pytorch_model", "diffusion_pytorch_model")}
_INDEX = ".index.json"
# Weights in the layout of another library, and quantized or cast copies that have a variant in their name.
_COPY = re.compile(r"consolidated.*|[^.]+\.[^.]+\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights of a folder.

    Attributes:
        names: Names of the files, in the order of the shards.
        index: Their index, if there is one.
    """

    names: Sequence[str]
    index: Index | None = None


def find_weights(folder: Path) -> WeightFiles:
    """Return the files that hold the weights of a folder.

    Raises:
        UnsupportedCheckpoint: There are none, it is ambiguous which ones they are, or an index is malformed.
    """
    for suffix, stems in _STEMS.items():
        found = _complete(folder, suffix, stems)
        if found:
            return found
    raise UnsupportedCheckpoint(
        f"The folder `{folder}` holds no safetensors weights, and no `pytorch_model.bin`. Name the checkpoint file "
        "itself."
    )


def _complete(folder: Path, suffix: str, stems: Sequence[str]) -> WeightFiles | None:
    whole = next((f"{stem}{suffix}" for stem in stems if (folder / f"{stem}{suffix}").is_file()), None)
    if whole:
        return WeightFiles([whole])
    indexes = sorted(folder.glob(f"*{suffix}{_INDEX}"), key=lambda path: (path.name.split(".")[0] not in stems, path))
    if indexes:
        index = Index.read(indexes[0])
        return WeightFiles(index.shards, index)
    if suffix == ".bin":
        return None  # any other file of this suffix may be something else
    names = sorted(path.name for path in folder.glob(f"*{suffix}") if path.is_file())
    chosen = [name for name in names if not _COPY.fullmatch(name)] or names
    if len(chosen) > 1:
        raise UnsupportedCheckpoint(
            f"The folder `{folder}` holds {len(chosen)} safetensors files and no index: "
            f"{', '.join(f'`{name}`' for name in chosen[:3])}. Name one of them."
        )
    return WeightFiles(chosen) if chosen else None


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights, without reading an index."""
    return any(
        next(folder.glob(pattern), None) is not None
        for pattern in ("*.safetensors", "*.safetensors.index.json", *(f"{stem}*.bin" for stem in _STEMS[".bin"]))
    )


def output_name(name: str) -> str:
    """Return the name of an output for a file of weights or an index; outputs are always safetensors."""
    if ".bin" not in name:
        return name
    stem = name if name.startswith("diffusion_") else name.removeprefix("pytorch_")
    return re.sub(r"\.bin(\.index\.json)?$", r".safetensors\1", stem)
