"""Programs that are written from traced networks compute the outputs of the networks."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import lrzip
from lrzip.api.export import Export
from lrzip.core.errors import LrzipError, UsageError
from tests.support.networks import Zoo, seeded

SHAPES = ("1,3,12,12", "1,5:int64")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    torch.save(seeded(Zoo).state_dict(), folder / "zoo.pt")
    lrzip.compress(folder / "zoo.pt", folder / "small.pt", ratio=2, model=seeded(Zoo))
    return folder / "small.pt"


@pytest.fixture(scope="module")
def exports(small: Path) -> Mapping[str, Export]:
    """Return the compressed network as a program of either format."""
    results: dict[str, Export] = {}
    for to in ("onnx", "pt2"):
        folder = small.with_name(to)
        folder.mkdir()
        results[to] = lrzip.export(small, to, folder / f"zoo.{to}", model=seeded(Zoo), input_shapes=SHAPES)
    return results


def outputs(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    if path.suffix == ".pt2":
        module: nn.Module = torch.export.load(path).module()
        result: Tensor = module(*inputs)
        return result
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    found: Tensor = torch.from_numpy(session.run(None, feed)[0])
    return found


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_compressed_network_runs_at_every_batch_size(to: str, exports: Mapping[str, Export], small: Path) -> None:
    result = exports[to]
    assert result.fixed == []
    assert result.differences
    network = lrzip.load_into(seeded(Zoo), small)
    for batch in (1, 4):
        inputs = Zoo.inputs(batch)
        expected = network(*inputs).detach()
        # Both sum in float32, in some dozen layers of up to some hundred products.
        torch.testing.assert_close(outputs(result.output, inputs), expected, rtol=1e-4, atol=1e-5)
    assert [path.name for path in result.output.parent.iterdir()] == [f"zoo.{to}"]


def test_factorized_layers_stay_two_small_weights(exports: Mapping[str, Export], small: Path) -> None:
    graph = onnx.load(exports["onnx"].output).graph
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    expected = {name: tuple(tensor.shape) for name, tensor in torch.load(small).items()}
    for stage in ("stem.0", "stem.1", "grouped.0", "grouped.1", "up.0", "up.1"):
        assert stored[f"{stage}.weight"] == expected[f"{stage}.weight"]
    assert not {(24, 3, 3, 3), (32, 6, 3, 3), (32, 16, 2, 2)} & set(stored.values())
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_module_becomes_a_program_with_trust(small: Path, tmp_path: Path) -> None:
    network = lrzip.load_into(seeded(Zoo), small)
    torch.save(network, tmp_path / "module.pt")
    lrzip.export(tmp_path / "module.pt", "pt2", tmp_path / "zoo.pt2", trust=True, input_shapes=SHAPES)
    inputs = Zoo.inputs(3)
    expected = network(*inputs).detach()
    torch.testing.assert_close(outputs(tmp_path / "zoo.pt2", inputs), expected, rtol=1e-4, atol=1e-5)


class TwoLayers(nn.Module):
    """The smallest network with a factorized layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).relu()
        return out


def test_a_program_becomes_an_onnx_model_with_trust(tmp_path: Path) -> None:
    network, program = seeded(TwoLayers), tmp_path / "a.pt2"
    torch.save(network.state_dict(), tmp_path / "a.pt")
    lrzip.export(tmp_path / "a.pt", "pt2", program, model=network, input_shapes=["1,8"])
    with pytest.raises(UsageError, match="brings its own network, with `trust=True`"):
        lrzip.export(program, "onnx")
    result = lrzip.export(program, "onnx", trust=True)
    assert result.differences
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    torch.testing.assert_close(outputs(result.output, (x,)), network(x).detach())


def test_a_program_that_differs_from_its_network_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.export.export(seeded(TwoLayers, 1), (torch.zeros(2, 8),), dynamic_shapes=[{0: Dim.AUTO}])
    torch.save(seeded(TwoLayers).state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr(torch.export, "load", lambda _: other)
    with pytest.raises(LrzipError, match="more than rounding, so nothing was written"):
        lrzip.export(tmp_path / "a.pt", "pt2", model=seeded(TwoLayers), input_shapes=["1,8"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
