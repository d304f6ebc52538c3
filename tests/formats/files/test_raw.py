"""Tensors are read as raw bytes with any strides, and refused if they exceed their bytes."""

import zipfile
from pathlib import Path

import pytest
import torch

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.raw import Block, RawTensor, members_of, shared

OFFSET = 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    data = torch.arange(24, dtype=torch.int16).view(torch.uint8).numpy().tobytes()
    (tmp_path / "raw").write_bytes(bytes(OFFSET) + data)
    return tmp_path / "raw"


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, nbytes: int = 48) -> RawTensor:
    return RawTensor(Block(OFFSET, nbytes), torch.int16, shape, strides, offset)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((4, 6), (6, 1), 0),
        ((6, 4), (1, 6), 0),
        ((3, 2), (6, 2), 5),
        ((4, 3), (0, 1), 2),
        ((), (), 23),
        ((1, 5), (9, 1), 0),
    ],
    ids=["contiguous", "transposed", "slice", "expanded", "scalar", "one row"],
)
def test_tensors_are_those_of_as_strided(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, path: Path
) -> None:
    raw = tensor(shape, strides, offset)
    raw.check(path, "w")
    expected = torch.arange(24, dtype=torch.int16).as_strided(shape, strides, offset)
    assert raw.read(path).equal(expected)
    in_order = expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert b"".join(bytes(chunk) for chunk in raw.chunks(path)) == in_order
    assert raw.is_contiguous == expected.is_contiguous()
    assert raw.spec("w").nbytes == len(in_order)


def test_an_empty_tensor_needs_no_bytes(path: Path) -> None:
    raw = tensor((0, 4), (4, 1), nbytes=0)
    raw.check(path, "w")
    assert raw.read(path).shape == (0, 4)
    assert list(raw.chunks(path)) in ([], [b""])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (tensor((5, 6), (6, 1)), r"`w` \(5, 6\) exceeds the stored bytes"),
        (tensor((4, 6), (6, 1), offset=1), "exceeds the stored bytes"),
        (tensor((1 << 30, 6), (0, 1)), "exceeds the stored bytes"),
        (tensor((2,), (1,), nbytes=0), "does not store its weight `w`"),
        (tensor((-1,), (1,)), "is damaged: `w` has the shape"),
        (tensor((2, 2), (1,)), "is damaged: `w` has the shape"),
    ],
)
def test_tensors_that_do_not_fit_their_bytes_are_refused(raw: RawTensor, message: str, path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        raw.check(path, "w")


def test_shared_and_repeated_elements_are_reasons() -> None:
    other = RawTensor(Block(100, 8), torch.int16, (4,), (1,), 0)
    found = shared(
        {"a": tensor((4, 6), (6, 1)), "b": tensor((2,), (1,)), "alone": other, "r": tensor((4, 3), (0, 1), nbytes=6)}
    )
    assert found == {"a": "shared with b", "b": "shared with a", "r": "repeats fewer stored elements"}


def test_members_of_an_archive_are_found_at_their_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("first", b"one")
        file.writestr("folder/second", b"two!")
    data = (tmp_path / "a.zip").read_bytes()
    found = {
        name: data[block.start : block.start + block.nbytes] for name, block in members_of(tmp_path / "a.zip").items()
    }
    assert found == {"first": b"one", "folder/second": b"two!"}
