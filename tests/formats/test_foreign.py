"""Files that are not checkpoints are named as what they are."""

import gzip
import io
import json
import pickle  # noqa: TID251  (to write files that must be refused)
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lrzip.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile
from lrzip.formats import open_checkpoint


class Custom:
    """A class that no restricted unpickler knows."""


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(content: object, *, legacy: bool = False, pickle_protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def recompressed() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"w.weight": torch.zeros(64, 64)}))) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def shortened(member: str, *, drop: bool = False) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"w.weight": torch.zeros(64, 64)}))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return zipped(
        {k: v[:100] if k.endswith(member) else v for k, v in members.items() if not (drop and k.endswith(member))}
    )


def array() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


def header(document: object, data: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


def spec(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WHOLE_MODULE = nn.Sequential(nn.Linear(3, 3))

REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.pt", lambda: b"", "is empty"),
    "git-lfs": (
        "a.safetensors",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git-LFS pointer",
    ),
    "web page": ("a.pt", lambda: b"\n<!DOCTYPE html><title>404</title>", "web page"),
    "other lrzip": ("a.lrz", lambda: b"LRZI\x00\x06" + bytes(40), "other lrzip, Long Range ZIP"),
    "ONNX": ("a.onnx", lambda: b"\x08\x08\x12\x07pytorch\x1a\x032.0", "ONNX model"),
    "TorchScript": ("a.pt", lambda: zipped({"m/code/__torch__.py": b"", "m/data.pkl": b""}), "TorchScript"),
    "NumPy": ("a.npz", array, "NumPy archive"),
    "HDF5": ("a.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    "GGUF": ("a.gguf", lambda: b"GGUF\x03\x00\x00\x00", "GGUF"),
    "gzip": ("a.pt.gz", lambda: gzip.compress(b"x"), "compressed archive"),
    "text": ("a.pt", lambda: b"hello, world\n", "no checkpoint that lrzip knows"),
    "module": ("a.pt", lambda: saved(WHOLE_MODULE), "class `torch.nn.modules.container.Sequential`"),
    "legacy module": (
        "a.pt",
        lambda: saved(WHOLE_MODULE, legacy=True),
        "class `torch.nn.modules.container.Sequential`",
    ),
    "plain pickle": ("a.pt", lambda: pickle.dumps({"a": 1}, protocol=4), "pickle that torch.save did not write"),
    "old plain pickle": ("a.pkl", lambda: pickle.dumps({"a": 1}, protocol=2), "damaged or not a checkpoint"),
    "another protocol": ("a.pt", lambda: saved({"w": 1}, pickle_protocol=4), "pickled with protocol 4"),
    "no tensors": ("a.pt", lambda: saved({"epoch": 3}), "holds no state_dict. It has: epoch"),
    "list": ("a.pt", lambda: saved([torch.ones(2)]), "holds a list"),
    "tie": ("a.pt", lambda: saved({k: {"w": torch.ones(2)} for k in "ab"}), "Choose with `--key`: a, b"),
    "compressed member": ("a.pt", recompressed, "compressed member"),
    "two of a name": ("a.pt", lambda: zipped_twice("m/data.pkl"), "two members of the same name"),
    "claims more than it has": ("a.pt", lambda: shortened("data/0"), "damaged or not a checkpoint"),
    "no storage": ("a.pt", lambda: shortened("data/0", drop=True), "damaged or not a checkpoint"),
    "outside": ("a.pt", lambda: zipped({"../m/data.pkl": pickle.dumps({}, protocol=2)}), "points outside"),
    "zip": ("a.zip", lambda: zipped({"readme.txt": b"x"}), "without a pickle"),
    "truncated zip": ("a.pt", lambda: saved({"w.weight": torch.ones(99, 99)})[:-300], "damaged or not a checkpoint"),
    "truncated legacy": ("a.pt", lambda: saved({"w.weight": torch.ones(99, 99)}, legacy=True)[:-300], "damaged"),
    "short header": ("a.safetensors", lambda: b"\x10\x00\x00", "damaged"),
    "huge header": ("a.safetensors", lambda: (1 << 62).to_bytes(8, "little") + b"{}", "damaged"),
    "header without JSON": ("a.safetensors", lambda: (4).to_bytes(8, "little") + b"nope", "damaged"),
    "cut data": ("a.safetensors", lambda: header({"w": spec([4], 0, 16)}, bytes(8)), "damaged"),
    "overlap": ("a.safetensors", lambda: header({"a": spec([2], 0, 8), "b": spec([2], 4, 12)}, bytes(12)), "damaged"),
    "hole": ("a.safetensors", lambda: header({"a": spec([2], 4, 12)}, bytes(12)), "damaged"),
    "shape of more bytes": ("a.safetensors", lambda: header({"a": spec([200], 0, 8)}, bytes(8)), "damaged"),
    "unknown dtype": ("a.safetensors", lambda: header({"a": spec([2], 0, 8, "X99")}, bytes(8)), "damaged"),
}


def zipped_twice(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, b"1")
        archive.writestr(name, b"2")
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_checkpoint_is_named(name: str, build: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(build())
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text
    assert text.endswith(".")


def test_foreign_classes_are_named_and_need_trust(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"fc.weight": torch.ones(4, 4)}, "args": Custom()}, path)
    with pytest.raises(UntrustedFile, match=r"not only tensors: `[\w.]*test_foreign\.Custom`\. Pass `--trust`"):
        open_checkpoint(path)


def test_trusted_files_may_hold_any_object(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"fc.weight": torch.ones(4, 4)}, "path": Path("x")}, path)
    with pytest.raises(UntrustedFile, match="pathlib"):
        open_checkpoint(path)
    with open_checkpoint(path, trust=True) as checkpoint:
        assert list(checkpoint.tensors()) == ["fc.weight"]
        assert checkpoint.others == ["path"]


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    for legacy in (False, True):
        path = tmp_path / f"evil{legacy}.pt"
        path.write_bytes(saved({"fc.weight": torch.ones(2, 2), "x": Evil()}, legacy=legacy))
        with pytest.raises(LrzipError):
            open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"nothing\.pt` does not exist"):
        open_checkpoint(tmp_path / "nothing.pt")
