"""Files that are not checkpoints are named as what they are."""

import gzip
import io
import json
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile
from lrzip.formats.open import open_checkpoint


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


REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.pt", lambda: b"", "is empty"),
    "git-lfs": (
        "a.safetensors",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git-LFS pointer",
    ),
    "web page": ("a.pt", lambda: b"\n<!DOCTYPE html><title>404</title>", "web page"),
    "other lrzip": ("a.lrz", lambda: b"LRZI\x00\x06" + bytes(40), "other lrzip, Long Range ZIP"),
    "NumPy": ("a.npz", array, "NumPy archive"),
    "HDF5": ("a.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    "GGUF": ("a.gguf", lambda: b"GGUF\x03\x00\x00\x00", "GGUF"),
    "gzip": ("a.pt.gz", lambda: gzip.compress(b"x"), "compressed archive"),
    "text": ("a.pt", lambda: b"hello, world\n", "not a checkpoint that lrzip knows"),
    "object": ("a.pt", lambda: saved(Namespace(epochs=3)), "class `argparse.Namespace`"),
    "legacy object": ("a.pt", lambda: saved(Namespace(epochs=3), legacy=True), "class `argparse.Namespace`"),
    "plain pickle": ("a.pt", lambda: pickle.dumps({"a": 1}, protocol=4), "pickle that torch.save did not write"),
    "old plain pickle": ("a.pkl", lambda: pickle.dumps({"a": 1}, protocol=2), "pickle that torch.save did not write"),
    "another protocol": ("a.pt", lambda: saved({"w": 1}, pickle_protocol=4), "pickled with protocol 4"),
    "no tensors": ("a.pt", lambda: saved({"epoch": 3}), "holds no state_dict. It has: epoch"),
    "list": ("a.pt", lambda: saved([torch.ones(2)]), "holds a list"),
    "tie": ("a.pt", lambda: saved({k: {"w": torch.ones(2)} for k in "ab"}), "Choose with `key=NAME`: a, b"),
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
def test_files_that_are_no_checkpoint_are_refused_by_their_kind(
    name: str, build: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(build())
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text
    assert text.endswith(".")


def test_foreign_classes_are_named_and_need_trust_to_be_written_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"fc.weight": torch.ones(4, 4)}, "args": Custom()}, path)
    message = r"test_foreign\.Custom`\. Write the weights alone with `output=NAME\.safetensors`, or pass `trust=True`"
    with pytest.raises(UntrustedFile, match=message):
        lrzip.compress(path, tmp_path / "b.pt", rank=1)
    assert not (tmp_path / "b.pt").exists()
    report = lrzip.compress(path, tmp_path / "b.safetensors", rank=1)
    assert [name for name, _ in report.dropped] == ["args"]


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_beside_any_object_are_read_without_it(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = {"fc.weight": torch.rand(4, 6).T, "n": torch.tensor(3, dtype=torch.int16), "e": torch.empty(0, 2)}
    others = {"args": Namespace(lr=0.1), "best": np.float64(0.5), "path": Path("x"), "seen": {1, 2}, "arr": np.zeros(2)}
    path.write_bytes(saved({"state_dict": state, **others}, legacy=legacy))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.key == "state_dict"
        assert list(checkpoint.others) == list(others)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert b"".join(checkpoint.chunks(name)) == tensor.contiguous().numpy().tobytes()
    assert len(lrzip.analyze(path).layers) == 1
    with open_checkpoint(path, trust=True) as checkpoint:
        assert list(checkpoint.others) == list(others)


def test_a_hostile_pickle_executes_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    for legacy in (False, True):
        for content in ({"fc.weight": torch.ones(2, 2), "x": Evil()}, Evil(), [Evil()], {Evil(): torch.ones(2)}):
            path = tmp_path / f"evil{legacy}.pt"
            path.write_bytes(saved(content, legacy=legacy))
            try:
                lrzip.analyze(path)
            except LrzipError as error:
                assert "\n" not in str(error)
            with pytest.raises(LrzipError):
                lrzip.compress(path, tmp_path / "b.pt", rank=1)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"nothing\.pt` does not exist"):
        open_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("length", [0x0380, 0x0480, 0x0580, 0x8B1F])
def test_a_safetensors_header_may_be_as_long_as_magic_bytes_say(length: int, tmp_path: Path) -> None:
    """A length of 896 begins like a pickle of protocol 3, one of 35615 like gzip."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode().ljust(length)
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(16))
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        assert list(checkpoint.tensors()) == ["w"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_is_named(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"fc.weight": np.zeros((4, 4))}, "__author__": "x"}, protocol))
    with pytest.raises(UnsupportedCheckpoint, match=r"a pickle that torch\.save did not write, such as Detectron2's"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("members", "shown"),
    [
        (["model_params.json", "network.pt"], "`network.pt`"),  # TabNet
        (["data", "policy.pth", "policy.optimizer.pth", "_version"], "`policy.pth` and `policy.optimizer.pth`"),
        (["a/b.safetensors", "c.onnx", "d.bin", "e.ckpt"], "`a/b.safetensors` and `c.onnx` and `d.bin` and others"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_other_libraries_name_the_member_with_the_weights(
    members: list[str], shown: str, compression: int, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        for name in members:
            archive.writestr(name, b"x" * 100)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(tmp_path / "a.zip")
    assert f"is an archive with {shown} in it. Unpack it, and give that file." in str(caught.value)
