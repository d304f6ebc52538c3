from pathlib import Path

import pytest
import torch
from PIL import Image

from lrzip.core.errors import LrzipError
from lrzip.training.data.images import read_images


def write_images(folder: Path, size: tuple[int, int] = (8, 6)) -> Path:
    """Write two images of each of two classes, of one color each."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", size, (255 * label, 51 * index, 0)).save(folder / name / f"{index}.png")
    return folder


def test_each_subfolder_is_a_class(tmp_path: Path) -> None:
    x, y = read_images(write_images(tmp_path / "images"), None)["train"].fetch(torch.arange(4), 0, None)
    assert x.shape == (4, 3, 6, 8)
    assert y is not None
    assert y.tolist() == [0, 0, 1, 1]
    assert torch.allclose(x[:, :, 0, 0], torch.tensor([[0, 0, 0], [0, 0.2, 0], [1, 0, 0], [1, 0.2, 0]]))


def test_images_are_resized_and_cropped_to_a_square(tmp_path: Path) -> None:
    arrays = read_images(write_images(tmp_path / "images"), 4)["train"]
    assert arrays.fetch(torch.tensor([0]), 0, None)[0].shape == (1, 3, 4, 4)


def test_folders_may_have_parts(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_images(tmp_path / "images" / part)
    parts = read_images(tmp_path / "images", None)
    assert {part: len(arrays) for part, arrays in parts.items()} == {"train": 4, "val": 4, "test": 4}


def test_parts_with_different_classes_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "images" / part)
    (tmp_path / "images" / "val" / "horse").mkdir()
    with pytest.raises(LrzipError, match="have different classes"):
        read_images(tmp_path / "images", None)


def test_images_of_other_sizes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    Image.new("RGB", (5, 5)).save(folder / "cat" / "2.png")
    with pytest.raises(LrzipError, match=r"2\.png` is 5×5 and .* 8×6. Give `image_size=PIXELS`"):
        read_images(folder, None)["train"].fetch(torch.arange(5), 0, None)
    (folder / "cat" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnot quite")
    with pytest.raises(LrzipError, match=r"2\.png` cannot be read as an image"):
        read_images(folder, None)["train"].fetch(torch.arange(5), 0, None)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(LrzipError, match="holds no images in subfolders"):
        read_images(tmp_path / "empty", None)
