"""The files beside the weights of a folder: which ones an output keeps, and how they are copied.

Copies of the weights, of other formats or in the layout of another library, would stay dense, and the states of
optimizers no longer fit. Copies are recognized by the names that libraries give them. Files of other names are copies
if the shapes of their tensors are those of the weights, or, for formats that are not read here, if they are large.
"""

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

from lrzip.core.errors import LrzipError
from lrzip.core.layers import TensorSpec
from lrzip.formats.open import open_checkpoint

COPY = "a copy of the weights, which would stay dense"
STATE = "a training state that no longer fits the parameters"

_COPIES = re.compile(
    r"(?:pytorch_model|tf_model|flax_model|diffusion_pytorch_model|model)(?:[.-][^/]*)?"
    r"\.(?:bin|h5|msgpack|ckpt(?:\..+)?|safetensors|pth?)|rust_model\.ot|consolidated[^/]*\.(?:pth?|safetensors)"
)
_INDEXES = re.compile(r".*\.(?:safetensors|bin|h5|msgpack)\.index(?:\..+)?\.json")
_STATES = re.compile(
    r"(?:.*/)?(?:optimizer[^/]*\.(?:pth?|bin|safetensors)|[^/]*_optim_states\.pt|(?:optimizer_\d+|global_step\d+)/.*)"
)
# Suffixes of files that hold tensors: those that are read here, and those of other runtimes.
_READ = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
_OTHER = re.compile(r"(?:(.*)/)?[^/]*\.(h5|msgpack|onnx|gguf|tflite|pb|mlmodel)(?:[._]data)?")
_OPENVINO = re.compile(r"(?:(.*)/)?(openvino)[^/]*\.(?:bin|xml)")
_PACKAGE = ".mlpackage/"
# A copy in int4, with its scales, takes more than a tenth of the bytes of one in float32.
_LEAST_SHARE = 0.1


def other_files(folder: Path, used: Collection[str]) -> Mapping[str, int]:
    """Return the files of a folder and its subfolders, except those in `used`, with their sizes in bytes.

    The files of Git are not listed, nor what links lead to, except files in the cache of the Hugging Face hub.
    """
    found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    return {name: 0 if _is_link(path) else path.stat().st_size for name, path in found.items() if name not in used}


def all_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, except those of Git, and except links."""
    return [path for path in _walk(folder) if not _is_link(path)]


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name != ".git":
                yield from _walk(path)
        elif path.is_symlink() or path.is_file():
            yield path


def left_out(folder: Path, files: Mapping[str, int], weights: Iterable[TensorSpec], nbytes: int) -> Mapping[str, str]:
    """Return the files that an output leaves out, with the reason.

    Args:
        folder: The folder of the source.
        files: Sizes of the files beside the weights, by relative path.
        weights: The weights.
        nbytes: Size in bytes of the files of the weights.
    """
    reasons = {name: STATE for name in files if _STATES.fullmatch(name)}
    reasons |= {name: COPY for name in files if name not in reasons and _is_named_copy(name)}
    shapes = Counter(map(_shape, weights))
    rest = [name for name in files if name not in reasons and not _is_link(folder / name)]
    for (is_read, _), names in _groups(rest).items():
        if is_read:
            is_copy = _covers(shapes, _shapes_of(folder / name for name in names))
        else:
            is_copy = sum(files[name] for name in names) >= _LEAST_SHARE * nbytes
        reasons |= dict.fromkeys(names, COPY) if is_copy else {}
    return {name: reasons[name] for name in files if name in reasons}


def copy_files(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy files, which keep their times. Links stay links, except those into the cache of the Hugging Face hub."""
    for name in names:
        before, after = source / name, destination / name
        after.parent.mkdir(parents=True, exist_ok=True)
        if _is_link(before):
            after.symlink_to(before.readlink())
        else:
            shutil.copy2(before, after)


def _is_link(path: Path) -> bool:
    """Return whether a path is a link, except one of a snapshot in the cache of the Hugging Face hub to its content."""
    if not path.is_symlink():
        return False
    target, parents = path.resolve(), path.absolute().parents
    stores = (parent.parent.resolve() / "blobs" for parent in parents if parent.name == "snapshots")
    return not (target.is_file() and any(target.is_relative_to(store) for store in stores))


def _is_named_copy(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    is_place = folder in ("", "original")
    return bool(is_place and (_COPIES.fullmatch(file) or _INDEXES.fullmatch(file)))


def _groups(names: Iterable[str]) -> Mapping[tuple[bool, str], list[str]]:
    """Return files that hold tensors, by whether they are read here, and by what they hold together.

    Shards are read together, and all files of a folder for one other runtime are taken together.
    """
    groups: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        if _PACKAGE in name:
            group = False, name.partition(_PACKAGE)[0]
        elif other := _OPENVINO.fullmatch(name) or _OTHER.fullmatch(name):
            group = False, f"{other[1] or ''}/{other[2]}"
        elif name.endswith(_READ):
            group = True, re.sub(r"\d+", "", name)
        else:
            continue
        groups.setdefault(group, []).append(name)
    return groups


def _shapes_of(paths: Iterable[Path]) -> Counter[tuple[int, ...]]:
    """Return how many tensors of each shape files hold; a file that cannot be read has none."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for path in paths:
        try:
            with open_checkpoint(path) as checkpoint:
                shapes.update(map(_shape, checkpoint.tensors().values()))
        except LrzipError:
            continue
    return shapes


def _covers(weights: Counter[tuple[int, ...]], shapes: Counter[tuple[int, ...]]) -> bool:
    """Return whether tensors of some shapes can be most of the weights."""
    return 2 * _elements(weights & shapes) > _elements(weights)


def _elements(shapes: Counter[tuple[int, ...]]) -> int:
    return sum(count * prod(shape) for shape, count in shapes.items())


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a tensor, with its dimensions sorted, since other libraries transpose some."""
    return tuple(sorted(spec.shape))
