"""ONNX: what was written computes what it should, and everything else of the model is as it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID251  (to build models and to read what was written)
import pytest

import lrzip
from lrzip.formats import open_checkpoint
from lrzip.layers import Layer
from tests.graphs import GRAPHS, Tensors, feeds, run, save


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
        assert {item.name: item.kind for item in found if isinstance(item, Layer)} == kinds
        weights = {item.weight.name if isinstance(item, Layer) else item.tensor.name for item in found}
        assert weights == checkpoint.tensors().keys()
        assert len({item.name for item in found}) == len(found)


def test_outputs_of_full_rank_are_the_same(case: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    path, kinds = case
    report = lrzip.compress(path, tmp_path / "small.onnx", energy=1.0, force_factorize=True)
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
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += tensors_in(attribute.g) if attribute.HasField("g") else []
    return found


def truncated(array: Any, rank: int, groups: int) -> Any:
    matrices = array.reshape(groups, array.shape[0] // groups, -1).astype(np.float64)
    u, s, vh = np.linalg.svd(matrices, full_matrices=False)
    dense = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
    return dense.reshape(array.shape).astype(np.float32)
