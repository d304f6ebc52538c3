import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lrzip.core.errors import LrzipError
from lrzip.training.data.arrays import is_array_file, read_arrays
from lrzip.training.data.samples import Samples
from tests.support.tasks import classes, write_data

NAN = np.array([[0.0], [np.nan], [np.inf]])


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_every_format_gives_the_same_arrays(suffix: str, tmp_path: Path) -> None:
    x, y = classes(100)
    path = tmp_path / f"data.{suffix}"
    if suffix == "npz":
        write_data(path, x, y, names=torch.zeros(3))
    elif suffix == "pt":
        torch.save({"x": x, "y": y}, path)
    else:
        save_file({"x": x, "y": y}, path)
    assert is_array_file(path)
    parts = read_arrays(path)
    assert list(parts) == ["train"]
    rows, labels = parts["train"].fetch(torch.arange(100), 0, None)
    assert torch.equal(rows, x)
    assert labels is not None
    assert torch.equal(labels, y)


def test_parts_have_labels_of_their_own_or_none(tmp_path: Path) -> None:
    x, y = classes(30)
    write_data(tmp_path / "d.npz", train_x=x[:20], train_y=y[:20], val_x=x[20:])
    parts = read_arrays(tmp_path / "d.npz")
    assert {part: len(arrays) for part, arrays in parts.items()} == {"train": 20, "val": 10}
    assert parts["train"].labels is not None
    assert parts["val"].labels is None


def test_columns_of_classes_become_vectors_and_targets_keep_their_shape(tmp_path: Path) -> None:
    x = torch.zeros(3, 2)
    write_data(tmp_path / "classes.npz", x, torch.tensor([[0], [1], [2]], dtype=torch.int32))
    write_data(tmp_path / "targets.npz", x, torch.ones(3, 1, dtype=torch.float64))
    labels = [read_arrays(tmp_path / name)["train"].labels for name in ("classes.npz", "targets.npz")]
    assert labels[0] is not None
    assert labels[1] is not None
    assert (labels[0].dtype, labels[0].tolist()) == (torch.int64, [0, 1, 2])
    assert (labels[1].dtype, labels[1].shape) == (torch.float32, (3, 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": NAN, "labels": NAN}, "`images` has NaN or infinite values in 2 rows"),
        ({"images": NAN, "labels": NAN[:2]}, "has no array `x` or `train_x`. It has: images, labels"),
        ({"labels": NAN[:1]}, "has no array `x` or `train_x`. It has: labels"),
        ({"x": np.zeros((3, 1)), "y": np.zeros(2)}, "`x` has 3 rows and `y` has 2"),
        ({"x": NAN, "y": np.zeros(3)}, "`x` has NaN or infinite values in 2 rows, the first is row 1"),
        ({"x": np.zeros((3, 1)), "y": NAN}, "`y` has NaN or infinite values"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0)}, r"`x` of shape \(0, 4\) holds no samples"),
        ({"x": np.array(1.0)}, r"`x` of shape \(\) holds no samples"),
        ({"x": np.zeros(3, dtype=complex)}, "`x` is complex"),
        ({"x": np.array(["a", "b"])}, r"`x` holds texts"),
        ({"x": np.array([{}])}, r"The data in .* cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_unusable_arrays_are_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(LrzipError, match=message) as error:
        read_arrays(tmp_path / "data.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damaged", "content"), [("a.npz", b"PK\x03\x04 no"), ("b.pt", b"nothing"), ("c.safetensors", b"\x08\x00")]
)
def test_damaged_files_are_named(damaged: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(LrzipError, match=r"(The data in .* cannot be read: |b\.pt` is damaged)") as error:
        read_arrays(tmp_path / damaged)
    assert "\n" not in str(error.value)


def test_a_file_without_a_dictionary_is_named(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "d.pt")
    with pytest.raises(LrzipError, match="holds a Tensor, not a dict of tensors"):
        read_arrays(tmp_path / "d.pt")


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "quantized", "number", "list", "complex", "float8"])
def test_tensors_without_dense_numbers_are_named(name: str, kind: str, tmp_path: Path) -> None:
    dense = torch.ones(24, 6)
    made: dict[str, Any] = {
        "sparse": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "meta": dense.to("meta"),
        "quantized": torch.quantize_per_tensor(dense, 1.0, 0, torch.qint8),
        "number": 5,
        "list": [1.0] * 24,
        "complex": dense.to(torch.complex64),
        "float8": dense.to(torch.float8_e4m3fn),
    }
    torch.save({"x": dense, "y": torch.zeros(24), name: made[kind]}, tmp_path / "d.pt")
    with pytest.raises(LrzipError, match=rf"d\.pt`: `{name}` (is|must be) ") as error:
        read_arrays(tmp_path / "d.pt")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_other_arrays_are_inputs_by_name(suffix: str, tmp_path: Path) -> None:
    x, mask = torch.arange(12).reshape(3, 4), torch.ones(3, 4, dtype=torch.uint8)
    arrays = {"x": x, "attention_mask": mask, "other": torch.ones(2)}
    path = tmp_path / f"d.{suffix}"
    write_arrays(path, arrays)
    samples = Samples("d", read_arrays(path)["train"])
    assert torch.equal(samples.fetch([0, 2])[0], x[[0, 2]])
    bound = samples.bound(["input_ids", "attention_mask", "labels"])
    inputs, labels = bound.fetch([0, 2])
    assert (list(inputs), labels, bound.ignored) == (["input_ids", "attention_mask"], None, [])
    assert torch.equal(inputs["input_ids"], x[[0, 2]])
    assert torch.equal(inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long))
    other = samples.bound(["pixels"])
    assert torch.equal(other.fetch([1])[0], x[[1]])
    assert other.ignored == ["attention_mask"]


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_without_x_all_inputs_have_names(suffix: str, tmp_path: Path) -> None:
    ids, mask = torch.arange(12).reshape(3, 4), torch.ones(3, 4).bool()
    path = tmp_path / f"d.{suffix}"
    write_arrays(path, {"mask": mask, "ids": ids, "labels": torch.tensor([1, 0, 1]), "extra": torch.ones(3)})
    samples = Samples("d", read_arrays(path)["train"])
    assert len(samples) == 3
    inputs, labels = (bound := samples.bound(["ids", "mask", "labels"])).fetch([2, 0])
    assert labels is not None
    assert (list(inputs), labels.tolist(), list(bound.ignored)) == (["ids", "mask"], [1, 1], ["extra"])
    assert torch.equal(inputs["ids"], ids[[2, 0]])
    assert inputs["mask"].dtype == torch.bool
    with pytest.raises(LrzipError, match="`d` has no array `x` or `train_x`, and no other that the network takes: it "):
        samples.bound(["pixels"])


def test_parts_have_further_arrays_of_their_own(tmp_path: Path) -> None:
    x = torch.arange(12).reshape(6, 2)
    write_arrays(tmp_path / "d.npz", {"train_x": x[:4], "val_x": x[4:], "train_mask": x[:4], "val_mask": x[4:]})
    parts = read_arrays(tmp_path / "d.npz")
    for part, rows in (("train", x[:4]), ("val", x[4:])):
        inputs, _ = Samples("d", parts[part]).bound(["ids", "mask"]).fetch([0, 1])
        assert torch.equal(inputs["mask"], rows[:2])


def write_arrays(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".npz":
        converted: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
        np.savez(path, **converted)
    elif path.suffix == ".pt":
        torch.save(arrays, path)
    else:
        save_file(arrays, path)


def test_other_entries_are_not_read(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3, 2), "sparse": torch.ones(3).to_sparse(), 7: object}, tmp_path / "d.pt")
    assert list(read_arrays(tmp_path / "d.pt")) == ["train"]


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_files_cut_anywhere_are_refused(suffix: str, tmp_path: Path) -> None:
    path, x = tmp_path / f"d.{suffix}", torch.ones(30, 4)
    if suffix == "npz":
        write_data(path, x)
    elif suffix == "pt":
        torch.save({"x": x}, path)
    else:
        save_file({"x": x}, path)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 80):
        path.write_bytes(content[:length])
        with pytest.raises(LrzipError, match=rf"`{path}`"):
            read_arrays(path)


def claiming(shape: str, data: bytes = b"", dtype: str = "<f4") -> bytes:
    """Return an array whose header claims a shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", ["(1000000000, 6)", "(3, 2)", f"({10**30},)", "(-1,)", "('a',)", "(True, 1e9)", "7"])
def test_arrays_that_claim_more_than_the_file_has_are_refused(shape: str, compression: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
        archive.writestr("x.npy", claiming(shape))
    with pytest.raises(LrzipError, match=r"d\.npz`") as error:
        read_arrays(tmp_path / "d.npz")
    assert str(error.value).isprintable()


def test_a_directory_that_claims_more_than_its_bytes_unpack_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", claiming("(250000000,)", b"1234"))
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02") + 24
    path.write_bytes(content[:at] + struct.pack("<I", 1 << 30) + content[at + 4 :])
    with pytest.raises(LrzipError, match=r"`x` claims 1073741824 bytes, and the file has fewer"):
        read_arrays(path)
