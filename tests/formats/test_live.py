"""A live network is a source of tensors like a file."""

from pathlib import Path

import torch

from lrzip.core.layers import Layer
from lrzip.formats.live import LiveSource
from lrzip.formats.open import open_checkpoint
from lrzip.networks.architecture import Architecture
from tests.support.networks import Net, seeded


def test_a_network_has_the_tensors_and_layers_of_its_state_dict(tmp_path: Path) -> None:
    network = seeded(Net)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    live = LiveSource(network)
    architecture = Architecture.of(network)
    with open_checkpoint(tmp_path / "a.pt") as stored:
        assert live.tensors() == stored.tensors()
        assert live.layers(architecture) == stored.layers(architecture)
        assert all(live.read(name).equal(stored.read(name)) for name in stored.tensors())
    assert [item.name for item in live.layers(architecture) if isinstance(item, Layer)] == [
        "conv1",
        "conv2",
        "fc1",
        "fc2",
    ]


def test_tensors_share_their_memory_with_the_network() -> None:
    network = torch.nn.Linear(3, 3)
    read = LiveSource(network).read("weight")
    with torch.no_grad():
        network.weight.fill_(7)
    assert read.eq(7).all()
