"""The tensors of adapters are recognized by their names and shapes."""

import re

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.layers import TensorSpec
from lrzip.networks.adapters import adapter_reason, find_pairs, holds_base
from tests.support.adapters import NAMES, RANK, SHAPES, tensors


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, shape, "float32", 4) for name, shape in shapes.items()}


@pytest.mark.parametrize("library", NAMES)
def test_the_pairs_of_every_library_are_found(library: str) -> None:
    stored = {name: TensorSpec(name, tuple(t.shape), "float32", t.nbytes) for name, t in tensors(library).items()}
    pairs, reasons = find_pairs(stored)
    assert not reasons
    assert [(p.second.shape[0], p.first.shape[1], p.rank) for p in pairs.values()] == [
        (*shape, RANK) for shape in SHAPES.values()
    ]
    assert {adapter_reason(name) for name in stored} == {"a factor of a LoRA adapter"}
    assert not holds_base(pairs.values(), stored)
    module = next(iter(pairs.values())).module
    assert holds_base(pairs.values(), stored | specs(**{f"{module}.weight": (3, 4)}))
    assert holds_base(pairs.values(), stored | specs(**{f"{module}.base_layer.weight": (3, 4)}))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"x.lora_A.weight": (4, 9)}, "lacks its other factor"),
        ({"x.lora_A.weight": (4, 9), "x.lora_B.weight": (7, 3)}, r"does not fit together, \(4, 9\) and \(7, 3\)"),
        ({"x.lora_down.weight": (4, 9, 3, 3), "x.lora_up.weight": (7, 4, 3, 3)}, "does not fit together"),
        (
            {"x.lora_down.weight": (4, 9, 1, 1), "x.lora_up.weight": (7, 4, 1, 1), "x.lora_mid.weight": (4, 4, 3, 3)},
            "has a third factor",
        ),
        ({"x.lora_A": (4, 9), "x.lora_B": (7, 4), "x.lora_E": (4, 1)}, "has a third factor"),
    ],
)
def test_factors_that_are_no_pair_are_named_with_the_reason(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    pairs, reasons = find_pairs(specs(**shapes))
    assert not pairs
    assert reasons
    for text in reasons.values():
        assert re.search(reason, text)


@pytest.mark.parametrize(
    "name",
    [
        "a.b.ia3_l", "a.lora_magnitude_vector.weight", "lora_unet_x.dora_scale", "x.hada_w1_a", "x.lokr_w2", "x.lora_E",
        "x.lora_mid.weight", "x.oft_blocks", "x.vera_lambda_b", "to_q_lora.down.weight",
    ],
)  # fmt: skip
def test_parts_of_adapters_are_no_weights_of_layers(name: str) -> None:
    assert adapter_reason(name)


@pytest.mark.parametrize(
    "name", ["x.weight", "lora.weight", "down.weight", "alora_A.weight", "up.weight", "x.ia3.weight"]
)
def test_other_names_are_no_adapters(name: str) -> None:
    assert adapter_reason(name) is None


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(40, 40)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(40, 30, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(30, 40, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return out


def test_the_adapters_of_a_live_network_stay_as_they_are() -> None:
    network = nn.Sequential(Adapted())
    report = lrzip.factorize(network, rank=2)
    names = [name for name, module in report.named_modules() if isinstance(module, nn.Sequential) and name]
    assert names == ["0.base_layer"]
