"""Everything but the replaced layers of a model is written unchanged, and only if it is valid and runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import lrzip
from lrzip.core.errors import LrzipError, OutputExists, PlanMismatch
from lrzip.core.plan import Plan
from lrzip.formats.open import open_checkpoint
from lrzip.formats.write import rewrite
from tests.support.graphs import (
    after_matmul,
    agree,
    changed,
    conv,
    external,
    feeds,
    model,
    node,
    rich,
    run,
    save,
    shared,
    weight,
)


def test_everything_else_of_a_model_stays(tmp_path: Path) -> None:
    path = save(rich(), tmp_path / "a.onnx")
    before = onnx.load(path)
    for output, plan in (("same.onnx", False), ("small.onnx", True)):
        if plan:
            lrzip.compress(path, tmp_path / output, rank=4)
        else:
            with open_checkpoint(path) as source, rewrite(tmp_path / output, source, Plan((), (), "", "")):
                pass
        after = onnx.load(tmp_path / output)
        for field in ("producer_name", "producer_version", "model_version", "doc_string", "ir_version", "opset_import"):
            assert getattr(after, field) == getattr(before, field)
        assert {p.key: p.value for p in after.metadata_props} == {"author": "someone", "note": "é"}
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert after.graph.name == before.graph.name
        kept = {tensor.name: tensor for tensor in after.graph.initializer}
        for tensor in before.graph.initializer:
            assert plan == (tensor.name not in kept) or kept[tensor.name] == tensor
        old, new = list(before.graph.node), list(after.graph.node)
        if plan:
            assert new.pop(0).op_type == "Conv"
            assert (new[0].name, new[0].output, new[0].doc_string) == (old[0].name, old[0].output, "first")
            assert new[0].metadata_props == old[0].metadata_props
            assert new[1:] == old[1:]
        else:
            assert new == old


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_dtypes_are_kept(dtype: str, tmp_path: Path) -> None:
    kind = getattr(TensorProto, {"float64": "DOUBLE"}.get(dtype, dtype.upper()))
    data = torch.from_numpy(weight(24, 20)).to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().tobytes()
    built = model([node("MatMul", "x w")], {"x": ["n", 24]}, {"y": 2}, {}, kinds={"x": kind, "y": kind})
    built.graph.initializer.append(TensorProto(name="w", dims=[24, 20], data_type=kind, raw_data=data))
    path = save(built, tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    first, second = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer)
    dense = first.astype(np.float64) @ second.astype(np.float64)
    expected = onnx.numpy_helper.to_array(built.graph.initializer[0]).astype(np.float64)
    eps = torch.finfo(getattr(torch, dtype)).eps
    # Each stored element of two factors is rounded once.
    assert np.linalg.norm(dense - expected) <= 4 * max(eps, 2e-16) * np.sqrt(20) * np.linalg.norm(expected)
    assert report.results[0].decision.dtype == dtype
    with pytest.raises(LrzipError, match=rf"`w` is {dtype}, and so are the inputs of its nodes"):
        lrzip.compress(path, tmp_path / "c.onnx", rank=2, dtype="float32")
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        ("dense.onnx.data", ".data"),
        ("dense.onnx_data", "_data"),
        ("dense.onnx.0123456789abcdef.weights", ".weights"),
        ("weights.bin", ".data"),
    ],
)
def test_external_data_stays_external(data: str, ending: str, tmp_path: Path) -> None:
    path = external(tmp_path, data)
    report = lrzip.compress(path, tmp_path / "small.onnx", energy=1.0, force_factorize=True, layers={"second": "keep"})
    expected = data_of(tmp_path / "small.onnx").name
    assert re.fullmatch(rf"small\.onnx\.[0-9a-f]{{16}}{re.escape(ending)}", expected)
    after = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    places = {
        tensor.name: next((e.value for e in tensor.external_data if e.key == "location"), None)
        for tensor in after.graph.initializer
    }
    chains = [f"{name}.{stage}.weight" for name in ("first", "third") for stage in range(2)]
    assert places == dict.fromkeys([*chains, "second"], expected) | {"unused": None}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["dense.onnx", data, "small.onnx", expected])
    assert report.nbytes_before == sum((tmp_path / name).stat().st_size for name in ("dense.onnx", data))
    assert report.nbytes_after == sum((tmp_path / name).stat().st_size for name in ("small.onnx", expected))
    inputs = feeds(path)
    agree(run(path, inputs), run(tmp_path / "small.onnx", inputs), depth=3, inner=32)
    with open_checkpoint(path) as before, open_checkpoint(tmp_path / "small.onnx") as result:
        assert torch.equal(before.read("second"), result.read("second"))


def test_large_results_are_written_externally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    monkeypatch.setattr("lrzip.formats.onnx.writer._PROTOBUF_LIMIT", 100)
    lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True, only=["kernel"])
    assert data_of(tmp_path / "b.onnx").stat().st_size >= 4 * 12 * 12 * 9
    inputs = feeds(path)
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=4, inner=108)


def test_tensors_of_attributes_may_be_external(tmp_path: Path) -> None:
    constant = node("Constant", "", "w", value=onnx.numpy_helper.from_array(weight(24, 20), "w"))
    other = node("Constant", "", "b", value=onnx.numpy_helper.from_array(weight(20), "b"))
    built = model([constant, other, node("Gemm", "x w b")], {"x": ["n", 24]}, {"y": 2}, {})
    onnx.save_model(
        built,
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.onnx.data",
        size_threshold=0,
        convert_attribute=True,
    )
    lrzip.compress(tmp_path / "a.onnx", tmp_path / "b.onnx", rank=3)
    (tmp_path / "a.onnx.data").unlink()
    with open_checkpoint(tmp_path / "b.onnx") as result:
        assert list(result.tensors()) == ["w.0.weight", "w.1.weight", "b"]
        assert np.array_equal(result.read("b").numpy(), weight(20))


def data_of(path: Path) -> Path:
    """Return the only file of external data that a model of this name has."""
    (found,) = path.parent.glob(f"{path.name}?*")
    return found


def test_data_of_the_input_is_not_overwritten(tmp_path: Path) -> None:
    path = external(tmp_path, "small.onnx")
    with pytest.raises(OutputExists, match=r"small\.onnx` is data of the input"):
        lrzip.compress(path, tmp_path / "small.onnx", rank=2, force=True)
    path = external(tmp_path, "small.onnx.0123456789abcdef.data")
    before = data_of(tmp_path / "small.onnx").read_bytes()
    (tmp_path / "small.onnx").unlink()
    lrzip.compress(path, tmp_path / "small.onnx", rank=2)
    assert (tmp_path / "small.onnx.0123456789abcdef.data").read_bytes() == before
    assert run(path, feeds(path))


def test_the_data_of_a_replaced_model_goes_and_that_of_others_stays(tmp_path: Path) -> None:
    path, output = external(tmp_path), tmp_path / "other.onnx"
    (tmp_path / "other.onnx.data").write_text("precious")
    (tmp_path / "other.onnx.0123456789abcdef.data").write_text("of a run that was killed")
    names = set()
    for rank in (2, 3, 3):
        lrzip.compress(path, output, rank=rank, force=True)
        (written,) = {*tmp_path.glob("other.onnx?*")} - {tmp_path / "other.onnx.data"}
        names.add(written.name)
        assert run(output, feeds(path))
    assert len(names) == 2
    assert (tmp_path / "other.onnx.data").read_text() == "precious"


@pytest.mark.parametrize("when", ["put", "check", "move"])
def test_a_crash_leaves_nothing(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    listing = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    places = {"put": "OnnxWriter.put", "check": "_check"}
    target = f"lrzip.formats.onnx.writer.{places[when]}" if when in places else "lrzip.formats.files.atomic._sync"
    monkeypatch.setattr(target, crash)
    with pytest.raises(KeyboardInterrupt):
        lrzip.compress(path, tmp_path / "small.onnx", rank=2)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == listing


def test_a_model_of_a_later_opset_is_written_without_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(changed(lambda m: setattr(m.opset_import[0], "version", 999)))
    report = lrzip.compress(tmp_path / "a.onnx", tmp_path / "b.onnx", rank=2)
    assert report.not_compared
    assert "does not run in onnxruntime" in report.not_compared
    assert "999" in report.not_compared
    assert onnx.load(tmp_path / "b.onnx").opset_import[0].version == 999


def test_a_plan_file_gives_the_output_of_its_rule(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    forced = lrzip.compress(path, tmp_path / "rule.onnx", energy=1.0, force_factorize=True)
    (tmp_path / "plan.json").write_text(json.dumps(forced.plan.to_dict()))
    lrzip.compress(path, tmp_path / "plan.onnx", plan=tmp_path / "plan.json", force_factorize=True)
    assert (tmp_path / "plan.onnx").read_bytes() == (tmp_path / "rule.onnx").read_bytes()
    with pytest.raises(PlanMismatch, match="save nothing"):
        lrzip.compress(path, tmp_path / "c.onnx", plan=tmp_path / "plan.json")


@pytest.mark.parametrize("steady", [True, False])
def test_an_output_that_does_not_run_does_not_appear(
    steady: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the writer is simulated, in a model that runs on random inputs and in one that only loads."""
    built = conv((24, 16, 3, 3), (9, 9), kernel_shape=[3, 3]) if steady else after_matmul(node("Reshape", "a five"))
    path = save(built, tmp_path / "a.onnx")
    if steady:
        monkeypatch.setattr("lrzip.formats.onnx.nodes._SHAPES", ())  # a 1×1 convolution that says it is 3×3
    else:
        monkeypatch.setattr("lrzip.formats.onnx.writer.complaint_of", lambda _: None)
        monkeypatch.setattr("lrzip.formats.onnx.writer.ir.to_proto", lambda _: onnx.ModelProto(ir_version=9))
    with pytest.raises(LrzipError, match=r"`small\.onnx` would not run in onnxruntime, unlike the original model"):
        lrzip.compress(path, tmp_path / "small.onnx", rank=4)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
