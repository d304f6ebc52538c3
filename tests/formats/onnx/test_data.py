"""Tensors are read from every field, and from external files only within the folder of the model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import external, model, node, placed, rich, save, weight


def test_values_in_typed_fields_are_read(tmp_path: Path) -> None:
    array = weight(12, 12)
    built = model([node("MatMul", "x w")], {"x": ["n", 12]}, {"y": 2}, {})
    built.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [12, 12], array.ravel().tolist()))
    with open_checkpoint(save(built, tmp_path / "a.onnx")) as checkpoint:
        assert np.array_equal(checkpoint.read("w").numpy(), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: placed(p, location="../secret"), r"in '\.\./secret', which is outside of its folder"),
        (lambda p: placed(p, location=str(p.parents[1] / "secret")), "outside of its folder"),
        (lambda p: placed(p, location="sub/../../secret"), "outside of its folder"),
        (lambda p: placed(p, location=""), "outside of its folder"),
        (lambda p: p.with_name("link").symlink_to("../secret") or placed(p, location="link"), "outside of its folder"),
        (lambda p: p.with_name("up").symlink_to("..") or placed(p, location="up/secret"), "outside of its folder"),
        (lambda p: p.with_name("dense.onnx.data").unlink(), "which does not exist"),
        (lambda p: placed(p, location="sub"), "which does not exist"),
        (lambda p: p.with_name("dense.onnx.data").write_bytes(bytes(100)), "too short"),
        (lambda p: placed(p, offset=str(1 << 62)), "too short"),
        (lambda p: placed(p, offset="-4"), "damaged|too short"),
        (lambda p: placed(p, offset="x"), "damaged"),
        (lambda p: placed(p, length="12"), "12 bytes, but its shape takes 4096"),
    ],
)
def test_external_data_that_is_not_there_or_elsewhere_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 14))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    change(external(folder))
    monkeypatch.chdir(folder)
    for name in ("dense.onnx", folder / "dense.onnx"):
        with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
            lrzip.compress(name, folder / "small.onnx", rank=2)
        assert "\n" not in str(caught.value)
    assert not (folder / "small.onnx").exists()


def test_tensors_of_strings_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(LrzipError, match="`words`") as caught:
        lrzip.export(save(rich(), tmp_path / "a.onnx"), "safetensors")
    assert "\n" not in str(caught.value)
