import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lrzip.training.processes import make_accelerator
from lrzip.training.settings import Settings
from lrzip.training.weights import ReplicatedWeights, ShardedWeights, Weights
from tests.support.networks import seeded


class Blocks(nn.Module):
    """A layer, two blocks, and a layer that shares its weight with one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2))
        self.last = nn.Linear(6, 6)
        self.last.weight = self.blocks[1].get_parameter("0.weight")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


@pytest.fixture
def process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def placed(kind: type[ReplicatedWeights] | type[ShardedWeights]) -> Weights:
    return kind(seeded(Blocks), Settings(lr=1e-2), make_accelerator("cpu", "no"))


def train(weights: Weights, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        weights.network(x).square().mean().backward()
        weights.optimizer.step()
        weights.optimizer.zero_grad()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("kind", [ReplicatedWeights, ShardedWeights])
def test_training_continues_bit_for_bit_from_a_loaded_state(
    kind: type[ReplicatedWeights] | type[ShardedWeights],
) -> None:
    once, again = placed(kind), placed(kind)
    train(once, range(3))
    again.load(once.state(), copy.deepcopy(once.optimizer_state()))
    for weights in (once, again):
        train(weights, range(3, 5))
    expected, found = once.state(), again.state()
    assert expected.keys() == found.keys()
    assert not torch.equal(expected["first.weight"], seeded(Blocks).get_parameter("first.weight"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.usefixtures("process")
def test_sharded_weights_are_trained_like_replicated_ones() -> None:
    """With one process each shard is a full tensor, so that not even the last bit differs."""
    replicated, sharded = placed(ReplicatedWeights), placed(ShardedWeights)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.network.parameters())
    for weights in (replicated, sharded):
        train(weights, range(3))
    found = sharded.state()
    assert list(found) == list(replicated.state())
    assert all(torch.equal(tensor, found[name]) for name, tensor in replicated.state().items())
