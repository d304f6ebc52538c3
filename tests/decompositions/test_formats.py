"""Every decomposition in every format: the written network and the merged dense one have the same outputs."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.core.merge import merge
from lrzip.core.report import Report
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION
from lrzip.formats import FORMATS
from tests.support import graphs
from tests.support.checkpoints import BUILDERS
from tests.support.decompositions import GROUPS, REARRANGING, registered

with registered():
    ALL = [name for name in DECOMPOSITIONS if name not in GROUPS | REARRANGING]


class Strided(nn.Module):
    """Convolutions whose kernel, stride, padding and dilation differ between axes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(6, 24, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(1, 2))
        self.small = nn.Conv2d(24, 20, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.small(torch.relu(self.wide(x)))).mean((2, 3)))
        return out


def dense() -> Strided:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Strided().eval()


X = torch.randn(3, 6, 14, 15, generator=torch.Generator().manual_seed(0))


def state_dict(folder: Path) -> Path:
    torch.save(dense().state_dict(), folder / "a.pt")
    return folder / "a.pt"


def safetensors(folder: Path) -> Path:
    save_file(dense().state_dict(), folder / "a.safetensors", metadata={"format": "pt"})
    return folder / "a.safetensors"


def sharded(folder: Path) -> Path:
    (folder / "shards").mkdir()
    state = dense().state_dict()
    shards = {
        "a.safetensors": ["wide.weight", "wide.bias"],
        "b.safetensors": ["small.weight", "head.weight", "head.bias"],
    }
    for shard, names in shards.items():
        save_file({name: state[name] for name in names}, folder / "shards" / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "shards"


def module(folder: Path) -> Path:
    torch.save(dense(), folder / "a.pt")
    return folder / "a.pt"


def program(folder: Path) -> Path:
    exported = torch.export.export(dense(), (X,), dynamic_shapes=({0: Dim.AUTO},))
    torch.export.save(exported, folder / "a.pt2")
    return folder / "a.pt2"


def onnx_model(folder: Path) -> Path:
    lrzip.export(state_dict(folder), "onnx", folder / "a.onnx", model=dense(), input_shapes=["3,6,14,15"])
    return folder / "a.onnx"


def from_state(path: Path) -> Tensor:
    out: Tensor = lrzip.load_into(Strided(), path).eval()(X)
    return out


def from_module(path: Path, x: Tensor = X) -> Tensor:
    out: Tensor = torch.load(path, weights_only=False)(x)
    return out


def from_program(path: Path, x: Tensor = X) -> Tensor:
    out: Tensor = torch.export.load(path).module()(x)
    return out


def from_onnx(path: Path, x: Tensor = X) -> Tensor:
    (name,) = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    (output,) = graphs.run(path, {name: x.numpy()}).values()
    return torch.from_numpy(output)


CASES: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path], Tensor]]] = {
    "state_dict": (state_dict, from_state),
    "safetensors": (safetensors, from_state),
    "sharded-safetensors": (sharded, from_state),
    "module": (module, from_module),
    "program": (program, from_program),
    "onnx": (onnx_model, from_onnx),
}
REFUSED = {"foreign", "torchscript", "huggingface", "diffusers", "peft"}
"""Formats that are never written, and folders of transformers, which hold only pairs of factors."""


@pytest.fixture(autouse=True)
def all_registered() -> Iterator[None]:
    with registered():
        yield


def merged(report: Report, read: Callable[[str], Tensor]) -> nn.Module:
    """Return the dense network with the products of the written factors for weights."""
    network = dense()
    with torch.no_grad():
        for decision in report.plan.factorize:
            weights = [read(spec.name) for spec in decision.outputs]
            network.get_parameter(decision.layer.weight.name).copy_(
                merge(decision.structure, weights, decision.layer.stage)
            )
    return network


def test_every_format_that_is_written_has_a_case() -> None:
    assert set(FORMATS) == set(CASES) | REFUSED


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_written_network_has_the_outputs_of_the_merged_one(
    name: str, case: tuple[Callable[[Path], Path], Callable[[Path], Tensor]], tmp_path: Path
) -> None:
    build, run = case
    path = build(tmp_path)
    output = tmp_path / f"out{path.suffix}"
    options = {"decomposition": name, "rank": 3, "round_to": 1, "trust": True}
    report = lrzip.compress(path, output, **options)  # type: ignore[arg-type]
    names = [decision.decomposition for decision in report.plan.factorize]
    assert names.count(name) >= 2
    with torch.no_grad():
        found = run(output)
        live = lrzip.factorize(dense(), decomposition=name, rank=3)
        expected = merged(report, live.state_dict().__getitem__) if path.suffix != ".onnx" else None
        # Sums of some hundred products of float32 in three layers.
        torch.testing.assert_close(found, live(X), rtol=1e-4, atol=1e-5)
        if expected is not None:
            torch.testing.assert_close(found, expected(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_multiply_accumulates_are_those_of_the_built_network(name: str, tmp_path: Path) -> None:
    options = {"decomposition": name, "rank": 3, "input_shapes": ["3,6,14,15"], "dry_run": True}
    report = lrzip.compress(state_dict(tmp_path), model=dense(), **options)  # type: ignore[arg-type]
    live = lrzip.factorize(dense(), decomposition=name, rank=3)
    with FlopCounterMode(display=False) as counter:
        live(X)
    assert report.costs
    assert report.costs.macs_after == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [name for name in ALL if name != DEFAULT_DECOMPOSITION])
def test_folders_of_transformers_hold_only_pairs_with_a_pointwise_second_stage(name: str, tmp_path: Path) -> None:
    path = BUILDERS["huggingface"](tmp_path)
    with pytest.raises(LrzipError, match=f"by `decomposition={name}`: most are .*. Choose another"):
        lrzip.compress(path, tmp_path / "out", decomposition=name, rank=2)
    assert not (tmp_path / "out").exists()
