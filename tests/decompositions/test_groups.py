"""A group of two layers goes from a plan file to every format: `fc–ReLU–fc` made narrower, by units that are kept."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim

import lrzip
from lrzip.core.errors import LrzipError, PlanMismatch, UsageError
from lrzip.formats import FORMATS
from tests.decompositions.test_formats import REFUSED, from_module, from_onnx, from_program
from tests.support.checkpoints import BUILDERS
from tests.support.decompositions import registered

HIDDEN = 5


class Perceptron(nn.Module):
    """Three linear layers, of which the first two are a pair."""

    def __init__(self, hidden: int = 20) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, hidden)
        self.fc2 = nn.Linear(hidden, 16)
        self.fc3 = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
        return out


def dense() -> Perceptron:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Perceptron().eval()


X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))


def expected() -> Tensor:
    """Return the outputs of the network without the hidden units with the smallest weights."""
    network = dense()
    with torch.no_grad():
        least = network.fc1.weight.norm(dim=1).argsort()[: 20 - HIDDEN]
        network.fc2.weight[:, least] = 0
        out: Tensor = network(X)
    return out


@pytest.fixture(autouse=True)
def all_registered() -> Iterator[None]:
    with registered():
        yield


def state_dict(folder: Path) -> Path:
    torch.save({"state_dict": {f"module.{n}": t for n, t in dense().state_dict().items()}}, folder / "a.pt")
    return folder / "a.pt"


def safetensors(folder: Path) -> Path:
    save_file(dense().state_dict(), folder / "a.safetensors", metadata={"format": "pt"})
    return folder / "a.safetensors"


def sharded(folder: Path) -> Path:
    (folder / "shards").mkdir()
    shards = {f"{name}.safetensors": [f"{name}.weight", f"{name}.bias"] for name in ("fc1", "fc2", "fc3")}
    for shard, names in shards.items():
        save_file({name: dense().state_dict()[name] for name in names}, folder / "shards" / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "shards"


def module(folder: Path) -> Path:
    torch.save(dense(), folder / "a.pt")
    return folder / "a.pt"


def program(folder: Path) -> Path:
    torch.export.save(torch.export.export(dense(), (X,), dynamic_shapes=({0: Dim.AUTO},)), folder / "a.pt2")
    return folder / "a.pt2"


def onnx_model(folder: Path) -> Path:
    torch.save(dense().state_dict(), folder / "b.pt")
    lrzip.export(folder / "b.pt", "onnx", folder / "a.onnx", model=dense(), input_shapes=["4,12"])
    return folder / "a.onnx"


def from_state(path: Path) -> Tensor:
    """Return the outputs of a narrower network of the same class, which the tensors fit strictly."""
    if path.is_dir():
        state = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    else:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)["state_dict"]
    network = Perceptron(HIDDEN)
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    out: Tensor = network(X)
    return out


CASES: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path], Tensor]]] = {
    "state_dict": (state_dict, from_state),
    "safetensors": (safetensors, from_state),
    "sharded-safetensors": (sharded, from_state),
    "module": (module, lambda path: from_module(path, X)),
    "program": (program, lambda path: from_program(path, X)),
    "onnx": (onnx_model, lambda path: from_onnx(path, X)),
}


def plan_for(path: Path, pair: tuple[str, str] = ("fc1", "fc2"), **changes: Any) -> Path:
    """Write a plan file that makes a pair of layers narrower, as a user would from one that lrzip wrote."""
    saved = path.parent / "saved.json"
    report = lrzip.compress(path, rank=1, dry_run=True, trust=True)
    document = report.plan.to_dict()
    layers = {item["name"]: item for item in document["layers"]}
    members = [{key: layers[name][key] for key in ("name", "tensor", "kind", "shape")} for name in pair]
    group = members[0] | {"layers": members, "decomposition": "narrow", "ranks": [HIDDEN], "dtype": "float32"}
    saved.write_text(json.dumps(document | {"layers": [group | changes]}))
    return saved


def test_every_format_that_is_written_has_a_case() -> None:
    assert set(FORMATS) == set(CASES) | REFUSED


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_pair_becomes_narrower_in_every_format(
    case: tuple[Callable[[Path], Path], Callable[[Path], Tensor]], tmp_path: Path
) -> None:
    build, run = case
    path = build(tmp_path)
    output = tmp_path / f"out{path.suffix}"
    report = lrzip.compress(path, output, plan=plan_for(path), trust=True)
    (decision,) = report.plan.factorize
    assert decision.group.name == "fc1+fc2"
    saved = (20 - HIDDEN) * (12 + 1 + 16)
    assert report.parameters_before - report.parameters_after == saved
    with torch.no_grad():
        torch.testing.assert_close(run(output), expected(), rtol=1e-5, atol=1e-6)


def test_the_written_plan_gives_the_same_bytes_again(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    report = lrzip.compress(path, tmp_path / "one.safetensors", plan=plan_for(path))
    (tmp_path / "again.json").write_text(json.dumps(report.plan.to_dict()))
    lrzip.compress(path, tmp_path / "two.safetensors", plan=tmp_path / "again.json")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_report_has_one_row_for_the_pair(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    shapes = {"model": dense(), "input_shapes": ["4,12"]}
    report = lrzip.compress(path, tmp_path / "out.safetensors", plan=plan_for(path), **shapes)  # type: ignore[arg-type]
    (row,) = report.to_dict()["layers"]
    assert (row["name"], row["ranks"]) == ("fc1+fc2", [HIDDEN])
    assert [layer["tensor"] for layer in row["layers"]] == ["fc1.weight", "fc2.weight"]
    assert row["macs_after"] == 4 * HIDDEN * (12 + 16)


@pytest.mark.parametrize(
    ("pair", "changes", "message"),
    [
        (("fc1", "fc2"), {"decomposition": "svd"}, "does not take them together: it replaces one layer at a time"),
        (("fc1", "fc3"), {}, "does not take them together: their hidden units differ"),
        (("fc1", "fc2"), {"ranks": [21]}, r"ranks \[21\]; they go from 1 to \[20\]"),
        (("fc1", "fc2"), {"ranks": [20]}, "save nothing"),
        (("fc1", "fc2"), {"ranks": [1, 1]}, r"they go from 1 to \[20\]"),
        (("fc1", "fc2"), {"layers": []}, r"`layers\[0\]\.layers` must be a list of at least 1"),
        (("fc1", "fc2"), {"layers": [{"tensor": "fc1.weight", "shape": [20]}]}, "fc1.weight` is "),
    ],
)
def test_a_group_that_cannot_be_replaced_is_refused_in_one_line(
    pair: tuple[str, str], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = safetensors(tmp_path)
    with pytest.raises(PlanMismatch, match=message):
        lrzip.compress(path, tmp_path / "out.safetensors", plan=plan_for(path, pair, **changes))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_single_layer_is_not_given_to_a_decomposition_of_groups(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    with pytest.raises(PlanMismatch, match="it takes pairs of layers"):
        lrzip.compress(path, plan=plan_for(path, layers=[{"tensor": "fc1.weight", "shape": [20, 12]}]), dry_run=True)


def test_a_calibration_refuses_groups(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    options = {"plan": plan_for(path), "model": dense(), "calibrate": X}
    with pytest.raises(UsageError, match=r"the plan replaces `fc1\+fc2` together"):
        lrzip.compress(path, tmp_path / "out.safetensors", **options)  # type: ignore[arg-type]


def test_folders_of_transformers_keep_the_sizes_of_their_configuration(tmp_path: Path) -> None:
    path = BUILDERS["huggingface"](tmp_path)
    with pytest.raises(LrzipError, match="would get another size"):
        lrzip.compress(path, tmp_path / "out", plan=plan_for(path))
