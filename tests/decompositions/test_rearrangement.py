"""Structures that rearrange features: every interpreter computes the product with the dense weight."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

import lrzip
from lrzip.core.merge import merge
from tests.support import graphs
from tests.support.decompositions import registered

OPTIONS = {"decomposition": "tensor-train", "rank": 3}
SHAPES = ((5, 20), (5, 4, 20))


class Perceptron(nn.Module):
    """Linear layers with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 24)
        self.fc2 = nn.Linear(24, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


def dense() -> Perceptron:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Perceptron().eval()


def sample(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(x)
    return out


def factorized() -> nn.Module:
    return lrzip.factorize(dense(), **OPTIONS)  # type: ignore[arg-type]


def merged(folder: Path) -> nn.Module:
    """Return the dense network with the products of the factors for weights."""
    torch.save(dense().state_dict(), folder / "dense.pt")
    plan = lrzip.compress(folder / "dense.pt", dry_run=True, **OPTIONS).plan  # type: ignore[arg-type]
    network, state = dense(), factorized().state_dict()
    assert len(plan.factorize) == 2
    with torch.no_grad():
        for decision in plan.factorize:
            weights = [state[spec.name] for spec in decision.outputs]
            weight = network.get_parameter(decision.layer.weight.name)
            weight.copy_(merge(decision.structure, weights, decision.layer.stage))
    return network


@pytest.fixture(autouse=True)
def all_registered() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_the_live_network_computes_the_product(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = sample(shape)
    torch.testing.assert_close(outputs(factorized(), x), outputs(merged(tmp_path), x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exported_program_computes_it(shape: tuple[int, ...], tmp_path: Path) -> None:
    program = torch.export.export(dense(), (sample(shape),), dynamic_shapes=({0: Dim.AUTO},))
    torch.export.save(program, tmp_path / "a.pt2")
    lrzip.compress(tmp_path / "a.pt2", tmp_path / "b.pt2", trust=True, **OPTIONS)  # type: ignore[arg-type]
    x = sample((2, *shape[1:]))
    found = outputs(torch.export.load(tmp_path / "b.pt2").module(), x)
    torch.testing.assert_close(found, outputs(factorized(), x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_onnx_model_computes_it(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(dense().state_dict(), tmp_path / "a.pt")
    sizes = ",".join(map(str, shape))
    lrzip.export(tmp_path / "a.pt", "onnx", tmp_path / "a.onnx", model=dense(), input_shapes=[sizes])
    report = lrzip.compress(tmp_path / "a.onnx", tmp_path / "b.onnx", **OPTIONS)  # type: ignore[arg-type]
    assert len(report.results) == 2
    x = sample((2, *shape[1:]))
    (name,) = [value.name for value in onnx.load(tmp_path / "b.onnx").graph.input]
    (found,) = graphs.run(tmp_path / "b.onnx", {name: x.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(found), outputs(factorized(), x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_multiply_accumulates_are_those_of_the_live_network(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(dense().state_dict(), tmp_path / "a.pt")
    sizes = ",".join(map(str, shape))
    options = OPTIONS | {"model": dense(), "input_shapes": [sizes], "dry_run": True}
    report = lrzip.compress(tmp_path / "a.pt", **options)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        outputs(factorized(), sample(shape))
    assert report.costs
    assert report.costs.macs_after == counter.get_total_flops() // 2


def test_a_product_that_is_scaled_is_refused_in_onnx(tmp_path: Path) -> None:
    path = graphs.save(graphs.gemm((20, 24), (24,), alpha=0.5), tmp_path / "a.onnx")
    with pytest.raises(lrzip.LrzipError, match="cannot be rearranged"):
        lrzip.compress(path, tmp_path / "b.onnx", **OPTIONS)  # type: ignore[arg-type]
    assert not (tmp_path / "b.onnx").exists()
