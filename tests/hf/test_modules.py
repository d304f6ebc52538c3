"""Low-rank modules are two ordinary layers, under their stored names in state dictionaries."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError

pytest.importorskip("transformers", "4.50", reason="needs transformers 4.50 or later")
modules = importlib.import_module("lrzip.hf.modules")

LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(12, 20),
    "linear-no-bias": lambda: nn.Linear(12, 20, bias=False),
    "conv1d": lambda: nn.Conv1d(8, 12, 5, stride=2, padding=2),
    "conv2d-groups": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=2, groups=4),
    "transposed": lambda: importlib.import_module("transformers.pytorch_utils").Conv1D(20, 12),
}
INPUTS = {"conv1d": (2, 8, 11), "conv2d-groups": (2, 8, 9, 7)}


@pytest.fixture(params=LAYERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return modules.low_rank("layer", LAYERS[name](), 2)


def state_of(name: str) -> dict[str, Tensor]:
    return {key: torch.randn(value.shape) for key, value in made(name).state_dict().items()}


def test_both_layers_are_ordinary_modules(name: str) -> None:
    layer = made(name)
    assert {type(part) for part in layer} <= {nn.Linear, nn.Conv1d, nn.Conv2d}
    assert [part.weight for part in layer] == [layer.weight_in, layer.weight]
    assert layer[0].bias is None
    assert "rank=2" in repr(layer)


def test_state_dictionaries_have_the_stored_names(name: str) -> None:
    stored = {"weight_in", "weight"} | ({"bias"} if name != "linear-no-bias" else set())
    assert made(name).state_dict().keys() == stored
    network = nn.ModuleDict({"a": made(name)})
    assert network.state_dict().keys() == {f"a.{key}" for key in stored}


def test_stored_names_and_those_of_the_layers_load(name: str) -> None:
    layer, state = made(name), state_of(name)
    layer.load_state_dict(state)
    inner = {f"{index}.{leaf}": state[key] for key, (index, leaf) in layer.STORED.items() if key in state}
    other = made(name)
    other.load_state_dict(inner)
    for key, value in state.items():
        assert getattr(layer, key).equal(value)
        assert getattr(other, key).equal(value)


def test_unknown_and_missing_names_are_refused(name: str) -> None:
    state = state_of(name)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        made(name).load_state_dict(state | {"other": torch.zeros(1)})
    del state["weight_in"]
    with pytest.raises(RuntimeError, match="Missing key"):
        made(name).load_state_dict(state)


def test_a_parameter_is_set_by_its_stored_name(name: str) -> None:
    layer = made(name)
    value = nn.Parameter(torch.ones_like(layer.weight_in))
    layer.weight_in = value
    assert layer[0].weight is value


def test_the_dense_layer_computes_the_same(name: str) -> None:
    layer = made(name)
    layer.load_state_dict(state_of(name))
    dense, x = layer.dense(), torch.randn(INPUTS.get(name, (3, 12)))
    original = LAYERS[name]()
    assert type(dense) is type(original)
    assert {key: value.shape for key, value in dense.state_dict().items()} == {
        key: value.shape for key, value in original.state_dict().items()
    }
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_was_quantized_is_not_merged() -> None:
    layer = made("linear")
    layer[0] = nn.Identity()
    layer[0].weight = torch.zeros(2, 12)
    with pytest.raises(LrzipError, match="Identity inside LowRankLinear has no plain weight to merge"):
        layer.dense()
