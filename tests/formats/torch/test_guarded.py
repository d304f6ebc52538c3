"""What a file of torch.save asks for is compared with what it has, before torch's unpickler sees it."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from lrzip.formats.torch.guarded import load_guarded

BEGIN, END = b"\x80\x02}(", b"u."


def called(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def archive(path: Path, content: bytes) -> Path:
    """Write a file of torch.save with a pickle of one's own and a storage of 64 bytes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", bytes(64))
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
    return path


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return (
        b"(X\x07\0\0\0storage"
        + f"ctorch\n{kind}\n".encode()
        + b"X\x01\0\0\0"
        + key.encode()
        + b"X\x03\0\0\0cpu"
        + number(count)
        + b"tQ"
    )


def tensor(count: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    sizes, steps = (b"(" + b"".join(map(number, part)) + b"t" for part in (shape, strides))
    hooks = called("collections", "OrderedDict", b")")
    return called(
        "torch._utils", "_rebuild_tensor_v2", b"(" + storage(count) + number(0) + sizes + steps + b"\x89" + hooks + b"t"
    )


def entry(value: bytes, key: bytes = b"X\x01\0\0\0a") -> bytes:
    return BEGIN + key + value + END


HUGE = 1 << 33
PICKLES = {
    "bytearray": entry(called("builtins", "bytearray", number(HUGE) + b"\x85")),
    "python 2": entry(called("__builtin__", "bytearray", number(HUGE) + b"\x85")),
    "tensor": entry(called("torch", "FloatTensor", number(1 << 17) + number(1 << 17) + b"\x86")),
    "new object": entry(b"ctorch\nTensor\n" + number(HUGE) + b"\x85\x81"),
    "from type": entry(
        called(
            "torch._tensor",
            "_rebuild_from_type_v2",
            b"(cbuiltins\nbytearray\nctorch\nTensor\n" + number(HUGE) + b"\x85}t",
        )
    ),
    "storage": entry(tensor(HUGE, (4,), (1,))),
    "expanded": entry(tensor(16, (HUGE,), (0,))),
    "strided": entry(tensor(16, (4, 4), (1 << 30, 1))),
    "bytes": entry(b"\x8e" + struct.pack("<Q", HUGE)),
    "text": entry(b"\x8d" + struct.pack("<Q", HUGE)),
    "deep key": entry(b"K\x01", b")" + b"\x85" * 200_000),
    "deep value": entry(called("builtins", "set", b"](" + b")" + b"\x85" * 200_000 + b"e\x85")),
    "wide key": entry(b"K\x01", b")" + b"2\x86" * 60),
}


@pytest.mark.parametrize("name", PICKLES)
def test_files_that_claim_more_than_they_have_are_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", PICKLES[name])
    with pytest.raises(LrzipError, match=r"a\.pt` is damaged") as caught, open_checkpoint(path) as checkpoint:
        checkpoint.tensors()
    assert "\n" not in str(caught.value)


def test_a_plain_file_of_this_test_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", entry(tensor(16, (4, 4), (4, 1))))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").shape == (4, 4)


def test_a_legacy_file_whose_storage_claims_more_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(4, 4)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    assert content.count(b"K\x10N") == 1  # 16 elements, which are no view of others
    (tmp_path / "a.pt").write_bytes(content.replace(b"K\x10N", number(HUGE) + b"N"))
    with pytest.raises(UnsupportedCheckpoint, match=r"the storage .* claims more bytes than it has"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("offset", [0, HUGE])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_beyond_its_storage_is_refused_before_the_storage_grows(
    zipped: bool, offset: int, tmp_path: Path
) -> None:
    """Unlike mapped storages, those in memory grow when a tensor is restored that exceeds them."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3, 5)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    places = (b"QK\x00K\x03K\x05\x86", b"Q" + number(offset) + number(3 if offset else HUGE) + b"K\x05\x86")
    assert content.count(places[0]) == 1
    if zipped:
        archive(tmp_path / "a.pt", entry(tensor(16, (HUGE, 5), (5, 1))))
    else:
        (tmp_path / "a.pt").write_bytes(content.replace(*places))
    with pytest.raises(UnsupportedCheckpoint, match="a tensor exceeds its storage"):
        load_guarded(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(3, 4), "b": bytearray(b"xy"), "c": {1, 2}, "d": [(1, (2, (3,)))]},
        OrderedDict(a=torch.ones(4).expand(3, 4), b=torch.nn.Parameter(torch.ones(2)), c=torch.ones(0, 4)),
        {"s": torch.eye(3).to_sparse(), "size": torch.Size((1, 2)), "device": torch.device("cpu")},
        {"m": torch.ones(2, 3, device="meta"), "z": torch.ones(2, dtype=torch.complex64), (1, (2, 3)): 4},
        {"rng": torch.get_rng_state(), "half": torch.ones(3, dtype=torch.bfloat16)[1:], "none": None, "f": 1.5},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_reads_is_read(content: Any, zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    found = load_guarded(tmp_path / "a.pt", mmap=zipped)
    assert found.keys() == expected.keys()
    assert str(found) == str(expected)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_calls_are_found_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
            return bytearray, (HUGE,)

    path = archive(tmp_path / "a.pt", pickle.dumps({"a": Call()}, protocol))
    with pytest.raises(UnsupportedCheckpoint, match=r"bytearray` claims more bytes than the file has"):
        load_guarded(path)
