"""Folders of images: one subfolder per class, in the order of their names."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError, one_line
from lrzip.training.data.samples import Arrays

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")
_PARTS = ("train", "val", "test")


class ImageFiles:
    """Images of one size, decoded on access.

    Args:
        paths: Files, at least one; the first one determines the mode, grey or RGB, and the size of all.
        size: Side in pixels of the square that images are resized to and cropped from; None keeps their size.
    """

    def __init__(self, paths: Sequence[Path], size: int | None) -> None:
        self._paths = paths
        self._size = size
        first = _decoded(paths[0], size, None)
        self._mode, self._shape = first.mode, first.size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Return some images, (n, channels, height, width) uint8.

        Raises:
            LrzipError: An image is damaged or of another size than the first of all.
        """
        images = [_decoded(self._paths[number], self._size, self._mode) for number in numbers.tolist()]
        for number, image in zip(numbers.tolist(), images, strict=True):
            if image.size != self._shape:
                raise LrzipError(
                    f"`{self._paths[number]}` is {image.size[0]}×{image.size[1]} and `{self._paths[0]}` "
                    f"{self._shape[0]}×{self._shape[1]}. Give `image_size=PIXELS`."
                )
        width, height = self._shape
        flat = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
        return torch.stack(flat).reshape(len(images), height, width, -1).permute(0, 3, 1, 2)


def read_images(folder: Path, size: int | None) -> dict[str, Arrays]:
    """Return the parts of a folder: its subfolders `train`, `val` and `test`, or all of it as `train`.

    Args:
        folder: Folder with one subfolder per class, or with such folders as parts.
        size: Side in pixels of the square that images are resized to and cropped from.

    Raises:
        LrzipError: There are no images, the parts have different classes, or Pillow is missing.
    """
    parts = {part: folder / part for part in _PARTS if (folder / part).is_dir()} or {"train": folder}
    classes = {part: _classes(path) for part, path in parts.items()}
    first = next(iter(parts))
    for part, names in classes.items():
        if names != classes[first]:
            raise LrzipError(
                f"`{parts[part]}` and `{parts[first]}` have different classes, which are their subfolders."
            )
    return {part: _arrays(path, classes[part], size) for part, path in parts.items()}


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _arrays(folder: Path, classes: Sequence[str], size: int | None) -> Arrays:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise LrzipError(f"`{folder}` holds no images in subfolders, one a class.")
    return Arrays(ImageFiles([path for path, _ in found], size), torch.tensor([label for _, label in found]))


def _decoded(path: Path, size: int | None, mode: str | None) -> Any:
    """Return an image of Pillow in grey or RGB."""
    try:
        pillow = import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise LrzipError("Reading images needs Pillow. Install it with `pip install 'lrzip-nn[train]'`.") from error
    try:
        # Pillow warns of images of half the size that it refuses.
        with warnings.catch_warnings(action="ignore"), pillow.open(path) as opened:
            image = opened.convert(mode or ("L" if opened.mode in ("1", "L", "I;16") else "RGB"))
            return image if size is None else _cropped(image, size)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of any type on damaged files
        raise LrzipError(f"`{path}` cannot be read as an image: {one_line(error, 120)}.") from error


def _cropped(image: Any, size: int) -> Any:
    """Return the center of an image whose shorter side is scaled to a size; the rest is never scaled."""
    shorter = min(image.size)
    scaled = [round(side * size / shorter) for side in image.size]
    starts = [(side - size) // 2 for side in scaled]
    ratios = [side / new for side, new in zip(image.size, scaled, strict=True)]
    box = [start * ratio for start, ratio in zip(starts, ratios, strict=True)]
    box += [(start + size) * ratio for start, ratio in zip(starts, ratios, strict=True)]
    return image.resize((size, size), box=tuple(box))
