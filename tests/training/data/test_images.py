import struct
import tracemalloc
import zlib
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


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (37, 91), (500, 3), (1, 40), (224, 224), (17, 16)])
@pytest.mark.parametrize("size", [4, 16, 33])
def test_a_crop_of_the_original_equals_the_crop_of_the_scaled_image(
    shape: tuple[int, int], size: int, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    noise = torch.randint(
        0, 256, (shape[1], shape[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    image = Image.fromarray(noise.numpy())
    image.save(tmp_path / "a" / "0.png")
    scaled = image.resize([round(side * size / min(shape)) for side in shape])
    left, top = ((side - size) // 2 for side in scaled.size)
    expected = torch.frombuffer(
        bytearray(scaled.crop((left, top, left + size, top + size)).tobytes()), dtype=torch.uint8
    ).reshape(size, size, 3)
    found = read_images(tmp_path, size)["train"].fetch(torch.tensor([0]), 0, None)[0][0]
    difference = (255 * found.permute(1, 2, 0) - expected).abs()
    assert difference.max() <= 1.01  # Pillow rounds twice, and computes the weights of a box in floating point
    assert (difference > 0.5).float().mean() < 0.02


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (1 << 31, 1), (0, 0), (100_000, 100_000)])
def test_images_that_claim_too_much_are_named(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png(width, height, bytes(100)))
    with pytest.raises(LrzipError, match=r"0\.png` cannot be read as an image: ") as caught:
        read_images(tmp_path, 8)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"])
def test_images_cut_anywhere_are_read_or_named(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"0.{suffix}"
    Image.new("RGB", (9, 7), (200, 100, 50)).save(path)
    content, refused = path.read_bytes(), 0
    for length in range(0, len(content), max(len(content) // 60, 1)):
        path.write_bytes(content[:length])
        try:
            read_images(tmp_path, 8)["train"].fetch(torch.tensor([0]), 0, None)
        except LrzipError as error:
            refused += 1
            assert f"`{path}` cannot be read as an image" in str(error)
    assert refused > 10


def test_long_thin_images_are_cropped_before_they_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png(1, 60_000, bytes(120_000)))
    tracemalloc.start()
    x, _ = read_images(tmp_path, 224)["train"].fetch(torch.tensor([0]), 0, None)
    assert x.shape == (1, 1, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
