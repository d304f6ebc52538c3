"""Tensors that are not plain are kept with the reason, carried over, and refused where they have no place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*quantiz.*")

ODD: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.empty(8, 6, device="meta"),
    "coo": lambda: torch.eye(6).to_sparse(),
    "csr": lambda: torch.eye(6).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.rand(6, 6), 0.1, 0, torch.qint8),
}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("entry", ["x", "x.weight"])
def test_odd_tensors_are_kept_and_carried_over(name: str, entry: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {entry: ODD[name](), "fc.weight": torch.rand(8, 8)})
    kept = next(keep for keep in lrzip.analyze(path).keep if keep.tensor.name == entry)
    assert kept.reason.startswith({"meta": "holds no data", "quantized": "quantized"}.get(name, "sparse"))
    lrzip.compress(path, tmp_path / "b.pt", rank=2)
    result = torch.load(tmp_path / "b.pt")
    assert list(result) == [entry, "fc.0.weight", "fc.1.weight"]
    assert (result[entry].layout, result[entry].device) == (ODD[name]().layout, ODD[name]().device)


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_refused_in_other_formats_by_name(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"x": ODD[name](), "fc.weight": torch.rand(8, 8)})
    with pytest.raises(UnsupportedCheckpoint, match=r"`x`"):
        lrzip.export(path, "safetensors", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("key", [3, 0.5, None, True, ("a", 1), b"w"])
@pytest.mark.parametrize("value", [torch.rand(4, 4), {"w": torch.rand(2)}, 7])
def test_entries_whose_keys_are_not_strings_are_carried_over(key: Any, value: Any, tmp_path: Path) -> None:
    for content in (
        {"fc.weight": torch.rand(8, 8), key: value},
        {"model": {"fc.weight": torch.rand(8, 8)}, key: value},
    ):
        path = saved(tmp_path / "a.pt", content)
        assert len(lrzip.analyze(path).layers) == 1
        lrzip.compress(path, tmp_path / "b.pt", rank=2, force=True)
        result = torch.load(tmp_path / "b.pt")
        assert key in result
        report = lrzip.compress(path, tmp_path / "b.safetensors", rank=2, force=True)
        assert str(key) in dict(report.dropped)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_tensor_called_like_the_header_of_safetensors_is_refused_there(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"__metadata__": torch.ones(2), "fc.weight": torch.rand(8, 8)})
    output = tmp_path / f"b{suffix}"
    if suffix == ".pt":
        lrzip.compress(path, output, rank=2)
        return
    for write in (lambda: lrzip.compress(path, output, rank=2), lambda: lrzip.export(path, "safetensors", output)):
        with pytest.raises(
            UnsupportedCheckpoint, match=r"a.* has a tensor called `__metadata__`, which safetensors cannot hold"
        ):
            write()
        assert not output.exists()


def test_packed_weights_of_quantized_layers_appear_in_the_report(tmp_path: Path) -> None:
    quantize: Any = torch.ao.quantization.quantize_dynamic
    model = quantize(nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 3)), {nn.Linear})
    path = saved(tmp_path / "a.pt", model.state_dict())
    kept = {keep.name: keep.reason for keep in lrzip.analyze(path).keep}
    assert kept["0._packed_params._packed_params"] == "packed weight of a quantized layer"
    assert len(lrzip.analyze(path).layers) == 1


@pytest.mark.parametrize("as_module", [False, True])
def test_parameters_of_one_flat_buffer_are_independent(as_module: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(flat, model.parameters())
    path = saved(tmp_path / "a.pt", model if as_module else model.state_dict())
    report = lrzip.compress(path, tmp_path / "b.pt", ratio=4, trust=as_module)
    assert len(report.plan.factorize) == 2
    assert report.nbytes_after < report.nbytes_before / 1.5
    partly = lrzip.compress(path, tmp_path / "c.pt", ratio=4, only=["0"], trust=as_module)
    assert partly.nbytes_after < report.nbytes_before
    assert len(lrzip.compress(path, tmp_path / "d.pt", ratio=4, trust=False, force=True).plan.factorize) == 2


def test_nothing_is_written_where_nothing_can_be_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"model": {"x": torch.ones(2)}, "other": 1})
    with pytest.raises(LrzipError):
        lrzip.compress(path, tmp_path / "b.pt", rank=2)
    assert not (tmp_path / "b.pt").exists()
