"""Programs that export writes compute what the network does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from lrzip.networks.inputs import InputShape
from lrzip.networks.programs.run import difference_of
from tests.support.networks import Zoo, seeded

SHAPES = ("1,3,12,12", "1,5:int64")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    torch.save(seeded(Zoo).state_dict(), folder / "zoo.pt")
    lrzip.compress(folder / "zoo.pt", folder / "small.pt", ratio=2, model=seeded(Zoo))
    return folder / "small.pt"


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_compressed_zoo_runs_at_every_batch_size(to: str, small: Path, tmp_path: Path) -> None:
    result = lrzip.export(small, to, tmp_path / f"zoo.{to}", model=seeded(Zoo), input_shapes=SHAPES)
    assert result.fixed == []
    assert result.differences
    network = lrzip.load_into(seeded(Zoo), small)
    for batch in (1, 4):
        inputs = Zoo.inputs(batch)
        expected = network(*inputs).detach()
        # Both sum in float32, in some dozen layers of up to some hundred products.
        torch.testing.assert_close(outputs(tmp_path / f"zoo.{to}", inputs), expected, rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"zoo.{to}"]


def outputs(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    if path.suffix == ".pt2":
        module: nn.Module = torch.export.load(path).module()
        result: Tensor = module(*inputs)
        return result
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    found: Tensor = torch.from_numpy(session.run(None, feed)[0])
    return found


def test_factorized_layers_stay_two_small_weights(small: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    lrzip.export(small, "onnx", tmp_path / "zoo.onnx", model=seeded(Zoo), input_shapes=SHAPES)
    graph = onnx.load(tmp_path / "zoo.onnx").graph
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    expected = {name: tuple(tensor.shape) for name, tensor in torch.load(small).items()}
    for stage in ("stem.0", "stem.1", "grouped.0", "grouped.1", "up.0", "up.1"):
        assert stored[f"{stage}.weight"] == expected[f"{stage}.weight"]
    assert all(shape not in stored.values() for shape in ((24, 3, 3, 3), (32, 6, 3, 3), (32, 16, 2, 2)))
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Fixed(nn.Module):
    """A network that makes a constant of its batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) + (1 if x.shape[0] == 2 else 0)
        return out


class Branches(Fixed):
    """A network that torch.export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) if float(x.sum()) > 0 else x
        return out


def test_a_dimension_of_which_the_network_makes_a_constant_is_named(tmp_path: Path) -> None:
    torch.save(Fixed().state_dict(), tmp_path / "a.pt")
    result = lrzip.export(tmp_path / "a.pt", "pt2", model=Fixed(), input_shapes=["1,8"])
    assert result.fixed == ["batch"]
    assert (tmp_path / "a.pt2").exists()


@pytest.mark.parametrize(
    ("model", "shapes", "error", "message"),
    [
        (None, ["1,8"], UsageError, "needs `--model PKG.MOD:NET` and `--input-shape`"),
        (Fixed(), [], UsageError, "needs `--model"),
        (Fixed(), ["1,eight"], UsageError, "takes sizes such as"),
        (Fixed(), ["1,8:float33"], UsageError, "no dtype of torch"),
        (Fixed(), ["1,9"], LrzipError, "The network does not take `--input-shape 1,9:float32`: RuntimeError"),
        (Fixed(), ["1,8", "1,8"], LrzipError, "does not take"),
        (Branches(), ["1,8"], LrzipError, "torch.export cannot follow the network"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    model: nn.Module | None, shapes: list[str], error: type[LrzipError], message: str, tmp_path: Path
) -> None:
    torch.save(Fixed().state_dict(), tmp_path / "a.pt")
    with pytest.raises(error) as caught:
        lrzip.export(tmp_path / "a.pt", "pt2", model=model, input_shapes=shapes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(Fixed().state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr(torch.export, "load", lambda _: torch.export.export(Fixed(), (torch.zeros(1, 8),)))
    with pytest.raises(LrzipError, match="more than rounding, so nothing was written"):
        lrzip.export(tmp_path / "a.pt", "pt2", model=Fixed(), input_shapes=["1,8"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_shapes_name_their_dynamic_dimensions() -> None:
    shape = InputShape.parse("1,length=128,7:int64")
    assert shape == InputShape((1, 128, 7), ("batch", "length", None), "int64")
    example = shape.example(3, torch.Generator().manual_seed(0))
    assert (tuple(example.shape), example.dtype) == ((3, 128, 7), torch.int64)
    assert set(example.flatten().tolist()) == {0, 1}


def test_differences_are_relative_to_the_norm() -> None:
    difference = difference_of("y", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert (difference.absolute, difference.relative) == (0.5, 0.1)
    assert difference_of("y", torch.zeros(2), torch.zeros(3)).relative == torch.inf


def test_dense_says_what_it_could_not_tell_without_the_network(small: Path, tmp_path: Path) -> None:
    result = lrzip.export(small, "dense", tmp_path / "dense.pt")
    assert {"up", "words", "attention.in_proj"} <= set(result.doubtful)
    assert not set(result.doubtful) & set(result.chains)
    assert lrzip.export(small, "dense", tmp_path / "other.pt", model=seeded(Zoo)).doubtful == ()


def test_dense_knows_all_kinds_of_chains_by_the_network(small: Path, tmp_path: Path) -> None:
    result = lrzip.export(small, "dense", tmp_path / "dense.pt", model=seeded(Zoo))
    assert {"up", "words", "grouped"} <= set(result.chains)
    dense = lrzip.load_into(seeded(Zoo), tmp_path / "dense.pt")
    with torch.no_grad():
        expected = lrzip.load_into(seeded(Zoo), small)(*Zoo.inputs())
        torch.testing.assert_close(dense(*Zoo.inputs()), expected, rtol=1e-4, atol=1e-5)


def test_a_program_becomes_onnx_by_itself(small: Path, tmp_path: Path) -> None:
    lrzip.export(small, "pt2", tmp_path / "zoo.pt2", model=seeded(Zoo), input_shapes=SHAPES)
    with pytest.raises(UsageError, match="brings its own network, with `--trust`"):
        lrzip.export(tmp_path / "zoo.pt2", "onnx", tmp_path / "zoo.onnx")
    result = lrzip.export(tmp_path / "zoo.pt2", "onnx", tmp_path / "zoo.onnx", trust=True)
    assert result.differences
    inputs = Zoo.inputs(3)
    expected = lrzip.load_into(seeded(Zoo), small)(*inputs).detach()
    torch.testing.assert_close(outputs(tmp_path / "zoo.onnx", inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_whole_module_becomes_a_program(tmp_path: Path) -> None:
    torch.save(lrzip.factorize(seeded(Zoo), ratio=2), tmp_path / "module.pt")
    lrzip.export(tmp_path / "module.pt", "pt2", tmp_path / "zoo.pt2", trust=True, input_shapes=SHAPES)
    inputs = Zoo.inputs(3)
    expected = lrzip.factorize(seeded(Zoo), ratio=2)(*inputs).detach()
    torch.testing.assert_close(outputs(tmp_path / "zoo.pt2", inputs), expected, rtol=1e-4, atol=1e-5)
