"""The inputs of layers are observed while a network runs."""

import torch
from torch import nn

from lrzip.core.activations import Inputs
from lrzip.core.layers import Layer
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.networks.observe import observe_network
from tests.support.networks import Zoo, seeded


def observed(network: nn.Module, *batches: tuple[torch.Tensor, ...]) -> list[tuple[str, Inputs]]:
    items = LiveSource(network).layers(Architecture.of(network))
    layers = {item.path: item for item in items if isinstance(item, Layer)}
    found: list[tuple[str, Inputs]] = []
    observe_network(network, layers, [(batch, {}) for batch in batches], lambda name, x: found.append((name, x)))
    return found


def test_every_call_of_every_layer_is_observed() -> None:
    network = seeded(Zoo)
    found = observed(network, Zoo.inputs(2), Zoo.inputs(1))
    calls = ["stem", "grouped", "up", "words", "attention.in_proj", "mix", "head"]
    assert sorted(name for name, _ in found) == sorted(2 * calls)
    parts = {name: len(x.parts) for name, x in found}
    assert parts == {**dict.fromkeys(calls, 1), "grouped": 4, "attention.in_proj": 3}


def test_hooks_and_the_fast_path_are_restored() -> None:
    network = nn.Sequential(nn.Linear(3, 3))
    fast = torch.backends.mha.get_fastpath_enabled()
    x = torch.ones(2, 3)
    ((name, inputs),) = observed(network, (x,))
    assert name == "0"
    assert inputs.parts[0].equal(x)
    assert not network[0]._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled() == fast
