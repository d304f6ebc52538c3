"""ONNX: what was written computes what it should, and everything else of the model is as it was."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import lrzip
from lrzip.core.errors import LrzipError, OutputExists, PlanMismatch, UnsupportedCheckpoint, UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.core.plan import Plan
from lrzip.decompositions import DECOMPOSITIONS
from lrzip.formats.open import open_checkpoint
from lrzip.formats.write import rewrite
from tests.support.graphs import (
    GRAPHS,
    Tensors,
    branches,
    conv,
    feeds,
    loop,
    model,
    node,
    run,
    save,
    shared,
    value,
    weight,
)
from tests.support.networks import Zoo, seeded


def reasons(report: Any) -> dict[str, str]:
    return {keep.name: keep.reason for keep in report.plan.keep}


def agree(before: Tensors, after: Tensors, *, depth: int, inner: int) -> None:
    """Check that outputs differ by rounding.

    A layer of full rank is off by a few eps of ‖W‖‖x‖, which is above its output by about the root of the inner
    dimension, since random inputs do not lie in the leading directions; layers add up.
    """
    assert before.keys() == after.keys()
    tolerance = 4 * depth * np.sqrt(inner) * np.finfo(np.float32).eps
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        assert np.linalg.norm(after[name] - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture(params=GRAPHS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Mapping[str, str]]:
    build, kinds = GRAPHS[request.param]
    return save(build(), tmp_path / "dense.onnx"), kinds


def test_layers_are_named_and_have_the_kind_of_their_nodes(case: tuple[Path, Mapping[str, str]]) -> None:
    path, kinds = case
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.layers()
        assert {item.name: str(item.kind) for item in found if isinstance(item, Layer)} == kinds
        weights = {item.weight.name if isinstance(item, Layer) else item.tensor.name for item in found}
        assert weights == checkpoint.tensors().keys()
        assert len({item.name for item in found}) == len(found)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_outputs_of_full_rank_are_the_same(name: str, case: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    path, kinds = case
    report = lrzip.compress(path, tmp_path / "small.onnx", decomposition=name, energy=1.0, force_factorize=True)
    assert len(report.results) == len(kinds)
    for seed in range(2):
        inputs = feeds(path, seed)
        agree(run(path, inputs), run(tmp_path / "small.onnx", inputs), depth=6, inner=240)
    assert report.not_compared is None
    assert all(difference.relative < 1e-4 for difference in report.differences)


def test_outputs_are_those_of_the_products_of_the_factors(case: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    """At rank 2 the dense model with truncated weights, by numpy's own SVD, is the reference."""
    path, kinds = case
    report = lrzip.compress(path, tmp_path / "small.onnx", rank=2, round_to=1)
    assert len(report.results) == len(kinds)
    model = onnx.load(path)
    for tensor in tensors_in(model.graph):
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim >= 2 and array.dtype == np.float32 and array.shape[0] > 1:
            groups = 4 if array.shape == (32, 8, 3, 3) else 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(truncated(array, 2, groups), tensor.name))
    reference = save(model, tmp_path / "reference.onnx")
    inputs = feeds(path)
    agree(run(reference, inputs), run(tmp_path / "small.onnx", inputs), depth=6, inner=240)
    assert report.differences[0].relative > 0.01


def tensors_in(graph: Any) -> list[Any]:
    found = list(graph.initializer)
    for made in graph.node:
        for attribute in made.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += tensors_in(attribute.g) if attribute.HasField("g") else []
    return found


def truncated(array: Any, rank: int, groups: int) -> Any:
    matrices = array.reshape(groups, array.shape[0] // groups, -1).astype(np.float64)
    u, s, vh = np.linalg.svd(matrices, full_matrices=False)
    dense = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
    return dense.reshape(array.shape).astype(np.float32)


def kept(model: Any, path: Path) -> dict[str, str]:
    with open_checkpoint(save(model, path)) as checkpoint:
        return {item.name: item.reason for item in checkpoint.layers() if isinstance(item, Keep)}


def one(kind: str, inputs: str, tensors: Tensors, rank: int = 2, **attributes: Any) -> Any:
    """Return a model of one node with inputs x and z that are not constants."""
    shapes = {name: [None] * rank for name in inputs.split() if name in ("x", "z")}
    return model([node(kind, inputs, **attributes)], shapes, {"y": rank}, tensors)


def overridable() -> Any:
    shapes: dict[str, list[str | int | None]] = {"x": ["n", 12], "w": [12, 12]}
    return model([node("MatMul", "x w")], shapes, {"y": 2}, {"w": weight(12, 12)})


def put_out() -> Any:
    return model([node("MatMul", "x w")], {"x": ["n", 12]}, {"y": 2, "w": 2}, {"w": weight(12, 12)})


def two_layouts() -> Any:
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "a w", transB=1)]
    return model(nodes, {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)})


def dequantized() -> Any:
    nodes = [node("DequantizeLinear", "w scale", "f"), node("MatMul", "x f")]
    tensors: Tensors = {"w": weight(12, 12).astype(np.int8), "scale": np.array(0.1, np.float32)}
    return model(nodes, {"x": ["n", 12]}, {"y": 2}, tensors)


def recurrent() -> Any:
    tensors = {"w": weight(1, 48, 12), "r": weight(1, 48, 12)}
    return one("LSTM", "x w r", tensors, 3, hidden_size=12)


def custom() -> Any:
    made = node("MatMul", "x w", domain="mine")
    return model([made], {"x": ["n", 12]}, {"y": 2}, {"w": weight(12, 12)}, imports=[helper.make_opsetid("mine", 1)])


KEPT: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "overridable": (overridable, {"w": "also an input of the graph"}),
    "output": (put_out, {"w": "an output of the graph"}),
    "two layouts": (two_layouts, {"w": "differently, as linear and linear_transposed"}),
    "dequantized": (dequantized, {"w": "quantized, for DequantizeLinear", "scale": "quantized"}),
    "integers": (
        lambda: one("MatMulInteger", "x w", {"w": weight(12, 12).astype(np.int8)}),
        {"w": "quantized, for MatMulInteger"},
    ),
    "recurrent": (recurrent, {"w": "recurrent weight of LSTM", "r": "recurrent weight of LSTM"}),
    "custom": (custom, {"w": "used by MatMul of the custom domain mine"}),
    "embedding": (lambda: one("Gather", "w x", {"w": weight(12, 12)}), {"w": "used by Gather"}),
    "transA": (lambda: one("Gemm", "x w", {"w": weight(12, 12)}, transA=1), {"w": "Gemm with transA"}),
    "first of gemm": (lambda: one("Gemm", "w x", {"w": weight(12, 12)}), {"w": "used by Gemm"}),
    "batched": (
        lambda: one("MatMul", "x w", {"w": weight(3, 12, 12)}, 3),
        {"w": "3-dimensional, multiplied by MatMul"},
    ),
    "constants": (
        lambda: one("MatMul", "v w", {"v": weight(12, 12), "w": weight(12, 12)}),
        dict.fromkeys("vw", "another constant"),
    ),
    "depthwise": (
        lambda: one("Conv", "x w", {"w": weight(12, 1, 3, 3)}, 4, group=12),
        {"w": "depthwise convolution"},
    ),
    "whole": (lambda: one("MatMul", "x w", {"w": weight(12, 12).astype(np.int32)}), {"w": "int32, not one of"}),
    "unused": (lambda: one("Relu", "x", {"w": weight(12, 12)}), {"w": "not used by any node"}),
    "vector": (
        lambda: one("Add", "x w", {"w": weight(12), "s": np.array(1, np.float32)}),
        {"w": "a vector", "s": "a scalar"},
    ),
}


@pytest.mark.parametrize(("build", "expected"), KEPT.values(), ids=KEPT)
def test_what_no_chain_can_replace_is_kept(build: Callable[[], Any], expected: dict[str, str], tmp_path: Path) -> None:
    found = kept(build(), tmp_path / "a.onnx")
    assert found.keys() == expected.keys()
    assert all(expected[name] in found[name] for name in found)


def test_a_grouped_transposed_convolution_is_kept(tmp_path: Path) -> None:
    path = save(conv((12, 6, 3), (9,), kind="ConvTranspose", groups=2), tmp_path / "a.onnx")
    assert "in groups" in reasons(lrzip.compress(path, rank=2, dry_run=True))["layer"]


def test_names_come_from_scopes_where_the_tensor_has_none(tmp_path: Path) -> None:
    names = {"val_7": "a", "onnx::MatMul_48": "b", "encoder.fc.weight": "c", "val_9": "d", "val_11": "e"}
    nodes = [
        node("MatMul", f"{'x' if index == 0 else index} {name}", str(index + 1)) for index, name in enumerate(names)
    ]
    nodes[-1].output[0] = "y"
    for made, scopes in zip(
        nodes, ["['', 'enc.fc1', 'linear']", None, "['', 'other', 'x']", "[broken", None], strict=True
    ):
        if scopes:
            made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    nodes[-1].name = ""
    built = model(nodes, {"x": ["n", 12]}, {"y": 2}, {name: weight(12, 12) for name in names})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    found = [result.decision.layer.name for result in report.results]
    assert found == ["enc.fc1", "node_2", "encoder.fc", "node_4", "val_11"]
    stored = {tensor.name for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert stored == {f"{name}.{stage}.weight" for name in found for stage in range(2)}


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x val_1", "a"), node("MatMul", "a val_2", "fc.0.weight"), node("Relu", "fc.0.weight")]
    for made in nodes[:2]:
        made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc', 'linear']")
    built = model(nodes, {"x": ["n", 12]}, {"y": 2}, {"val_1": weight(12, 12), "val_2": weight(12, 12, seed=1)})
    path = save(built, tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", energy=1.0, force_factorize=True)
    assert [result.decision.layer.name for result in report.results] == ["fc_2", "fc_3"]
    inputs = feeds(path)
    agree(run(path, inputs), run(tmp_path / "b.onnx", inputs), depth=2, inner=12)


def rich() -> Any:
    """Return a model with everything around the weights that has to stay."""
    nodes = [
        node("Conv", "x kernel bias", "a", pads=[1, 1, 1, 1], doc_string="first"),
        node("Mine", "a table", "b", domain="mine", level=3),
        node("Relu", "b", name=""),
    ]
    nodes[0].metadata_props.add(key="trace", value="line 1")
    tensors = {
        "kernel": weight(24, 16, 3, 3),
        "bias": weight(24),
        "table": weight(24, 24),
        "words": np.array(["a", "é"]),
    }
    built = model(nodes, {"x": ["n", 16, 9, 9]}, {"y": 4, "a": 4}, tensors, imports=[helper.make_opsetid("mine", 2)])
    built.producer_name, built.producer_version, built.model_version, built.doc_string = "maker", "1.2", 7, "a model"
    helper.set_model_props(built, {"author": "someone", "note": "é"})
    built.graph.value_info.append(value("b", shape=[1, 24, 9, 9]))
    return built


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


def test_convolutions_get_ranks_that_runtimes_like(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")

    def ranks(**options: Any) -> dict[str, int]:
        report = lrzip.compress(path, rank=3, dry_run=True, **options)
        return {decision.layer.name: decision.ranks[0] for decision in report.plan.factorize}

    assert ranks() == {"kernel": 8, "matrix": 3}
    assert ranks(round_to=1) == {"kernel": 3, "matrix": 3}
    assert ranks(round_to=4) == {"kernel": 4, "matrix": 4}


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


def test_values_in_typed_fields_are_read(tmp_path: Path) -> None:
    array = weight(12, 12)
    built = model([node("MatMul", "x w")], {"x": ["n", 12]}, {"y": 2}, {})
    built.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [12, 12], array.ravel().tolist()))
    with open_checkpoint(save(built, tmp_path / "a.onnx")) as checkpoint:
        assert np.array_equal(checkpoint.read("w").numpy(), array)


def external(folder: Path, data: str = "dense.onnx.data") -> Path:
    """Return a model of three MatMul with its weights in a file of their own, and a Constant."""
    names = ("first", "second", "third")
    nodes = [node("MatMul", f"{index if index else 'x'} {name}", str(index + 1)) for index, name in enumerate(names)]
    nodes[-1].output[0] = "y"
    tensors = {name: weight(32, 32, seed=index) / 6 for index, name in enumerate(names)}
    built = model(nodes, {"x": ["n", 32]}, {"y": 2}, tensors | {"unused": weight(3)})
    return save(built, folder / "dense.onnx", data=data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("dense.onnx.data", "small.onnx.data"),
        ("dense.onnx_data", "small.onnx_data"),
        ("weights.bin", "small.onnx.data"),
    ],
)
def test_external_data_stays_external(data: str, expected: str, tmp_path: Path) -> None:
    path = external(tmp_path, data)
    report = lrzip.compress(path, tmp_path / "small.onnx", energy=1.0, force_factorize=True, layers={"second": "keep"})
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
    assert (tmp_path / "b.onnx.data").stat().st_size >= 4 * 12 * 12 * 9
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


def test_data_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = external(tmp_path, "small.onnx.data")
    with pytest.raises(OutputExists, match=r"would overwrite `.*small\.onnx\.data`, data of the input"):
        lrzip.compress(path, tmp_path / "small.onnx", rank=2)
    path.with_name("small.onnx.data").rename(tmp_path / "data.onnx")
    placed(path, location="data.onnx", index=slice(None))
    with pytest.raises(OutputExists, match=r"would overwrite `.*data\.onnx`, data of the input"):
        lrzip.compress(path, tmp_path / "data.onnx", rank=2, force=True)
    (tmp_path / "other.onnx.data").write_text("precious")
    with pytest.raises(OutputExists, match=r"other\.onnx\.data`, where the tensors of .* exists"):
        lrzip.compress(path, tmp_path / "other.onnx", rank=2)
    assert (tmp_path / "other.onnx.data").read_text() == "precious"
    (tmp_path / "third.onnx").write_text("old")
    lrzip.compress(path, tmp_path / "third.onnx", rank=2, force=True)
    lrzip.compress(path, tmp_path / "third.onnx", rank=3, force=True)
    assert run(tmp_path / "third.onnx", feeds(path))


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


def placed(path: Path, index: slice = slice(1), **changes: str) -> Path:
    """Change where a model says that its first tensor is, or others."""
    built = onnx.load(path, load_external_data=False)
    for tensor in built.graph.initializer[index]:
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(built.SerializeToString())
    return path


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


def sparse() -> bytes:
    built = shared()
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9, 9]))
    return bytes(built.SerializeToString())


def changed(change: Callable[[Any], object]) -> bytes:
    built = shared()
    change(built)
    return bytes(built.SerializeToString())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"\x08\x08\x12\x07pytorch\x1a\x032.0", "damaged or not a checkpoint: it has no graph"),
        (lambda: b"hello, world", "damaged or not a checkpoint"),
        (lambda: shared().SerializeToString()[:-900], "damaged or not a checkpoint"),
        (sparse, "sparse initializers"),
        (lambda: changed(lambda m: m.training_info.add()), "training information"),
        (lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 13)), "bytes of `kernel`, not"),
        (lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -12)), "negative dimension"),
        (lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "damaged"),
        (lambda: changed(lambda m: setattr(m.graph.node[0], "op_type", "Nothing")), "not a valid ONNX model: .*Nothing"),
    ],
)
def test_what_is_no_model_is_refused(data: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(data())
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        lrzip.compress(tmp_path / "a.onnx", rank=2)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_a_model_of_a_later_opset_is_written_and_the_doubt_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(changed(lambda m: setattr(m.opset_import[0], "version", 999)))
    report = lrzip.compress(tmp_path / "a.onnx", tmp_path / "b.onnx", rank=2)
    assert report.not_compared
    assert "does not run in onnxruntime" in report.not_compared
    assert "999" in report.not_compared
    assert onnx.load(tmp_path / "b.onnx").opset_import[0].version == 999


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


def test_weights_are_no_program_and_programs_are_no_weights(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    for suffix in ("safetensors", "pt", "model"):
        with pytest.raises(UsageError, match=r"is a program, so the name of .* must end in \.onnx"):
            lrzip.compress(path, tmp_path / f"small.{suffix}", rank=2)
    torch.save({"fc.weight": torch.rand(16, 16)}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="holds weights and no program"):
        lrzip.compress(tmp_path / "a.pt", tmp_path / "small.onnx", rank=2)
    with pytest.raises(UsageError, match="`--force-factorize` takes a file with a program"):
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


def after_matmul(*nodes: Any, rank: int = 2) -> Any:
    made = [node("MatMul", "x w", "a"), *nodes]
    tensors = {"w": weight(12, 12), "five": np.array([5, 12])}
    return model(made, {"x": ["n", 12]}, {"y": rank}, tensors)


def with_a_list() -> Any:
    built = after_matmul(node("SequenceAt", "list zero", "item"), node("Add", "a item"))
    built.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    return built


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: after_matmul(node("Reshape", "a five")), "does not run on random inputs of its declared shapes"),
        (lambda: after_matmul(node("Log", "a")), "returns NaN or Inf"),
        (lambda: after_matmul(node("MatMul", "a w", "b"), node("Mine", "b", domain="mine")), "does not run in onnx"),
        (with_a_list, "the input `list` is a seq"),
    ],
)
def test_what_cannot_be_run_on_random_inputs_is_not_compared(
    build: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    built = build()
    built.opset_import.append(helper.make_opsetid("mine", 1))
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.differences == ()
    assert message in str(report.not_compared)
    assert "\n" not in str(report.not_compared)


def test_an_output_whose_shape_changes_is_not_compared(tmp_path: Path) -> None:
    built = after_matmul(node("Relu", "a", "b"), node("NonZero", "b"))
    built.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=1)
    assert "shape of the output `y` depends" in str(report.not_compared)


def test_differences_are_those_of_the_outputs(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v"), node("Identity", "x", "same")]
    tensors = {"w": weight(12, 12), "v": weight(12, 12, seed=1)}
    built = model(nodes, {"x": ["n", 12]}, {"y": 2, "same": 2}, tensors)
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=3)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)}
    before, after = (run(tmp_path / name, inputs)["y"].astype(np.float64) for name in ("a.onnx", "b.onnx"))
    found = {difference.output: difference for difference in report.differences}
    assert found.keys() == {"y", "same"}
    assert found["same"].absolute == found["same"].relative == 0
    assert found["y"].absolute == pytest.approx(abs(after - before).max(), rel=1e-6)
    assert found["y"].relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-6)
    assert report.to_dict()["differences"][0] == {
        "output": "y",
        "absolute": found["y"].absolute,
        "relative": found["y"].relative,
    }


def test_without_onnxruntime_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = lrzip.compress(save(shared(), tmp_path / "a.onnx"), rank=2)
    assert "pip install 'lrzip-nn[onnx]'" in str(report.not_compared)


def test_a_plan_file_does_what_the_rule_did(tmp_path: Path) -> None:
    path = save(shared(), tmp_path / "a.onnx")
    forced = lrzip.compress(path, tmp_path / "rule.onnx", energy=1.0, force_factorize=True)
    (tmp_path / "plan.json").write_text(json.dumps(forced.plan.to_dict()))
    lrzip.compress(path, tmp_path / "plan.onnx", plan=tmp_path / "plan.json", force_factorize=True)
    assert (tmp_path / "plan.onnx").read_bytes() == (tmp_path / "rule.onnx").read_bytes()
    with pytest.raises(PlanMismatch, match="save nothing"):
        lrzip.compress(path, tmp_path / "c.onnx", plan=tmp_path / "plan.json")


def test_an_exported_network_keeps_its_outputs(tmp_path: Path) -> None:
    path = tmp_path / "zoo.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(seeded(Zoo), Zoo.inputs(), path, dynamo=True, verbose=False, dynamic_shapes=(batch, batch))
    assert path.with_name("zoo.onnx.data").exists()
    report = lrzip.compress(path, tmp_path / "small.onnx", energy=1 - 1e-9, round_to=1, only=["stem", "up", "mix"])
    assert {r.decision.layer.name: r.decision.ranks for r in report.results} == dict.fromkeys(
        ("stem", "up", "mix"), (2,)
    )
    images, ids = Zoo.inputs(3)
    expected = seeded(Zoo)(images, ids).detach().numpy()
    found = run(tmp_path / "small.onnx", {"image": images.numpy(), "ids": ids.numpy()})
    agree({"y": expected}, dict(zip("y", found.values(), strict=True)), depth=8, inner=216)
    everything = lrzip.compress(path, tmp_path / "full.onnx", energy=1.0, force_factorize=True)
    assert {result.decision.layer.name for result in everything.results} >= {"grouped", "head", "attention", "stem"}
    assert all(difference.relative < 1e-5 for difference in everything.differences)


def test_a_model_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrzip.formats.onnx.run._SECONDS", 0.3)
    built = loop()
    built.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(1 << 60), "count"))
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the model runs for more than 0.3 s."


def test_inputs_of_any_size_are_not_made(tmp_path: Path) -> None:
    built = model([node("MatMul", "x w")], {"x": [1 << 40, 12]}, {"y": 2}, {"w": weight(12, 12)})
    report = lrzip.compress(save(built, tmp_path / "a.onnx"), tmp_path / "b.onnx", rank=2)
    assert report.not_compared == "the model declares inputs that are too large to try."


def test_texts_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(LrzipError, match="`words`") as caught:
        lrzip.export(save(rich(), tmp_path / "a.onnx"), "safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steady", [True, False])
def test_what_does_not_run_does_not_appear(steady: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the writer is simulated, in a model that runs on random inputs and in one that only loads."""
    built = conv((24, 16, 3, 3), (9, 9), kernel_shape=[3, 3]) if steady else after_matmul(node("Reshape", "a five"))
    path = save(built, tmp_path / "a.onnx")
    if steady:
        monkeypatch.setattr("lrzip.formats.onnx.nodes._SHAPES", ())  # a 1×1 convolution that says it is 3×3
    else:
        monkeypatch.setattr("lrzip.formats.onnx.writer._complaint", lambda _: None)
        monkeypatch.setattr("lrzip.formats.onnx.writer.ir.to_proto", lambda _: onnx.ModelProto(ir_version=9))
    with pytest.raises(LrzipError, match=r"`small\.onnx` would not run in onnxruntime, unlike the original model"):
        lrzip.compress(path, tmp_path / "small.onnx", rank=4)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
