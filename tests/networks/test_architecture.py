"""Modules are layers that can be factorized, or have a reason why not."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lrzip.networks.architecture import Architecture, module_info


class Doubled(nn.Linear):
    """A subclass that does not compute what its parent does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """A subclass that computes what its parent does."""


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("build", "kind", "groups"),
    [
        (lambda: nn.Linear(4, 4), "linear", 1),
        (lambda: Renamed(4, 4), "linear", 1),
        (lambda: nn.Embedding(4, 4), "embedding", 1),
        (lambda: nn.Conv1d(4, 4, 3), "conv1d", 1),
        (lambda: nn.Conv2d(4, 4, 3, groups=2), "conv2d", 2),
        (lambda: nn.Conv3d(4, 4, 3), "conv3d", 1),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "conv_transpose2d", 1),
    ],
)
def test_layers_have_a_kind_and_groups(build: Callable[[], nn.Module], kind: str, groups: int) -> None:
    info = module_info(build())
    assert (str(info.kind), info.groups, info.reason) == (kind, groups, None)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Doubled(4, 4), "the weight of Doubled, which has no factors here"),
        (lambda: nn.BatchNorm1d(4), "the weight of BatchNorm1d, which has no factors here"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "its weight is computed from other tensors"),
        (hooked, "it carries forward hooks"),
        (lambda: nn.MultiheadAttention(4, 2).out_proj, "read directly by nn.MultiheadAttention"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), "rows are renormalized"),
        (lambda: nn.Conv2d(4, 4, 3, groups=4), "depthwise"),
    ],
)
def test_modules_that_cannot_be_replaced_have_a_reason(build: Callable[[], nn.Module], reason: str) -> None:
    assert reason in str(module_info(build()).reason)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"kdim": 3, "vdim": 5}, "attention whose query, key and value differ in width"),
        ({"add_bias_kv": True}, "attention with further keys"),
        ({"add_zero_attn": True}, "attention with further keys"),
    ],
)
def test_the_projections_of_attention_are_one_layer(options: dict[str, int | bool], reason: str | None) -> None:
    network = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2, **options)})
    info = Architecture.of(network).layers["a.in_proj"]
    assert (str(info.kind), info.groups) == ("attention", 3)
    assert (info.reason is None) == (reason is None)
    assert (reason or "") in (info.reason or "")


def test_an_architecture_names_shapes_classes_and_shared_tensors() -> None:
    network = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4, bias=False), "c": nn.ReLU()})
    network["b"].weight = network["a"].weight
    found = Architecture.of(network)
    assert found.shapes == {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 3)}
    assert found.shared == {"a.weight": "b.weight", "b.weight": "a.weight"}
    assert found.classes == {"": "ModuleDict", "a": "Linear", "b": "Linear", "c": "ReLU"}
    assert found.layers.keys() == {"a", "b"}
