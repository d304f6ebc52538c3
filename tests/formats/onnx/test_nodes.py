"""The nodes of structures compute the product of their factors, in every kind of graph."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lrzip
from lrzip.core.layers import Layer
from lrzip.decompositions import DECOMPOSITIONS, decomposition_of
from lrzip.formats.open import open_checkpoint
from lrzip.linalg.svd import Solver
from tests.support.graphs import agree, feeds, run, save
from tests.support.networks import Zoo, seeded


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_outputs_of_full_rank_are_the_same(name: str, case: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    path, kinds = case
    with open_checkpoint(path) as checkpoint:
        layers = [item for item in checkpoint.layers() if isinstance(item, Layer)]
    decomposition = decomposition_of(name, Solver())
    if all(decomposition.refuse(layer) for layer in layers):
        pytest.skip(f"no layer of this graph takes {name}")
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
