"""Models are parsed or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, UsageError
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import branches, changed, save, shared


def sparse() -> bytes:
    built = shared()
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9, 9]))
    return bytes(built.SerializeToString())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"\x08\x08\x12\x07pytorch\x1a\x032.0", "damaged or not a checkpoint: it has no graph"),
        (lambda: b"hello, world", "damaged or not a checkpoint"),
        (lambda: shared().SerializeToString()[:-900], "damaged or not a checkpoint"),
        (sparse, "sparse initializers"),
        (lambda: changed(lambda m: m.training_info.add()), "training information"),
        (
            lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 13)),
            r"name: kernel\) raw_data size \(5184 bytes\) is too small",
        ),
        (lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -12)), "negative dimension"),
        (lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "damaged"),
        (
            lambda: changed(lambda m: setattr(m.graph.node[0], "op_type", "Nothing")),
            "not a valid ONNX model: .*Nothing",
        ),
    ],
)
def test_files_that_are_no_model_are_refused(data: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(data())
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        lrzip.compress(tmp_path / "a.onnx", rank=2)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    data = branches().SerializeToString()
    generator = np.random.default_rng(0)
    path = tmp_path / "a.onnx"
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for position in generator.integers(len(data), size=3):
            damaged[position] = generator.integers(256)
        path.write_bytes(bytes(damaged[: generator.integers(len(data))]) if generator.integers(2) else bytes(damaged))
        try:
            lrzip.compress(path, tmp_path / "b.onnx", rank=2, force=True)
        except LrzipError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


def test_weights_and_programs_are_not_confused(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    for suffix in ("safetensors", "pt", "model"):
        with pytest.raises(UsageError, match=r"is a program, so the name of .* must end in \.onnx"):
            lrzip.compress(path, tmp_path / f"small.{suffix}", rank=2)
    torch.save({"fc.weight": torch.rand(16, 16)}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="holds weights and no program"):
        lrzip.compress(tmp_path / "a.pt", tmp_path / "small.onnx", rank=2)
    with pytest.raises(UsageError, match="`force_factorize` takes a file with a program"):
        lrzip.compress(tmp_path / "a.pt", rank=2, force_factorize=True)
    with pytest.raises(UsageError, match="states itself which layers"):
        lrzip.compress(path, rank=2, model=torch.nn.Linear(2, 2))
    with pytest.raises(LrzipError, match="is a program"):
        lrzip.export(path, "dense")
    with pytest.raises(UsageError, match=r"does not write \.onnx"):
        lrzip.export(path, "state-dict", tmp_path / "b.onnx")


def test_the_tensors_can_be_exported(tmp_path: Path) -> None:
    lrzip.compress(save(shared(), tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=4)
    for to, suffix in (("safetensors", ".safetensors"), ("state-dict", ".pt")):
        result = lrzip.export(tmp_path / "b.onnx", to, tmp_path / f"c{suffix}")
        assert "graph" in dict(result.dropped)
        with open_checkpoint(tmp_path / "b.onnx") as before, open_checkpoint(result.output) as after:
            assert before.tensors().keys() >= after.tensors().keys()
            assert all(torch.equal(before.read(name), after.read(name)) for name in after.tensors())
