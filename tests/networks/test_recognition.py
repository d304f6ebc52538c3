"""Layers are recognized by the network where it is known, and inferred otherwise."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lrzip.core.errors import LrzipError
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers
from tests.support.networks import Zoo

PATH = Path("a.pt")


def specs(network: nn.Module, prefix: str = "") -> dict[str, TensorSpec]:
    state = network.state_dict()
    return {
        f"{prefix}{name}": TensorSpec(
            f"{prefix}{name}", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes
        )
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_network_decides_kinds_groups_and_obstacles(prefix: str) -> None:
    found = {item.name: item for item in find_layers(PATH, specs(Zoo(), prefix), Architecture.of(Zoo()))}
    kinds = {name: (str(i.kind), i.groups) for name, i in found.items() if isinstance(i, Layer)}
    assert kinds == {
        "stem": ("conv2d", 1),
        "grouped": ("conv2d", 4),
        "up": ("conv_transpose2d", 1),
        "words": ("embedding", 1),
        "attention.in_proj": ("attention", 3),
        "mix": ("linear", 1),
        "head": ("linear", 1),
    }
    reasons = {name: item.reason for name, item in found.items() if isinstance(item, Keep)}
    assert reasons["depthwise"].startswith("depthwise")
    assert reasons["tokens"] == "shared with tied.weight"
    assert reasons["attention.out_proj"] == "read directly by nn.MultiheadAttention"
    assert reasons["lstm.weight_ih_l0"].startswith("recurrent weight")
    assert all(item.module.startswith(prefix) for item in found.values() if isinstance(item, Layer))


def test_without_the_network_layers_are_inferred() -> None:
    found = {item.name: item for item in find_layers(PATH, specs(Zoo()), None)}
    assert isinstance(found["stem"], Layer)
    assert isinstance(found["depthwise"], Keep)
    assert found["depthwise"].override
    assert isinstance(found["words"], Keep)
    assert found["words"].override


def test_only_a_trainer_adds_the_prefix_of_its_attribute() -> None:
    tensors = {"model.fc.weight": TensorSpec("model.fc.weight", (8, 4), "float32", 128)}
    names = [find_layers(PATH, tensors, None, trainer=trainer)[0].name for trainer in (False, True)]
    assert names == ["model.fc", "fc"]


def test_reasons_of_the_format_come_first() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    (item, *_) = find_layers(PATH, specs(network), Architecture.of(network), untouchable={"0.weight": "quantized"})
    assert isinstance(item, Keep)
    assert item.reason == "quantized"


def test_parameters_that_are_no_weight_name_the_class_of_their_module() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 4))

    network = nn.Sequential(Scaled())
    (item,) = find_layers(PATH, specs(network), Architecture.of(network))
    assert isinstance(item, Keep)
    assert (item.name, item.reason) == ("0.scale", "a parameter of Scaled")


def test_a_file_of_another_network_is_refused() -> None:
    with pytest.raises(LrzipError, match=r"`a\.pt` does not fit the model: `weight` has shape \(3, 3\)"):
        find_layers(PATH, specs(nn.Linear(3, 3)), Architecture.of(nn.Linear(3, 4)))
