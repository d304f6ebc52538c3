from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lrzip.core.kinds import ATTENTION, CONVOLUTIONS, EMBEDDING, KINDS, LINEAR, Kind, kind_of_shape

SIZES: tuple[int, ...] = (2, 3, 4)
"""Kernel sizes, as many as there are spatial axes."""
MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 10),
    "embedding": lambda: nn.Embedding(6, 10),
    "conv1d": lambda: nn.Conv1d(6, 10, 2),
    "conv2d": lambda: nn.Conv2d(6, 10, (2, 3)),
    "conv3d": lambda: nn.Conv3d(6, 10, (2, 3, 4)),
    "conv_transpose1d": lambda: nn.ConvTranspose1d(6, 10, 2),
    "conv_transpose2d": lambda: nn.ConvTranspose2d(6, 10, (2, 3)),
    "conv_transpose3d": lambda: nn.ConvTranspose3d(6, 10, (2, 3, 4)),
}
"""Modules with 6 inputs and 10 outputs; transformers' Conv1D, attention and adapters have tests of their own."""
ALL_KINDS = pytest.mark.parametrize("kind", KINDS.values(), ids=str)
MODULE_KINDS = pytest.mark.parametrize("kind", [KINDS[name] for name in MODULES], ids=str)
REGRESSIONS = pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.is_regression], ids=str)


def test_every_kind_has_a_module() -> None:
    assert KINDS.keys() == MODULES.keys() | {"linear_transposed", "attention", "lora"}


@MODULE_KINDS
def test_the_layout_is_that_of_the_weight_of_the_module(kind: Kind) -> None:
    shape = tuple(MODULES[kind.name]().get_parameter("weight").shape)
    assert kind.channels(shape) == (10, 6)
    assert kind.kernel(shape) == SIZES[: kind.spatial]
    assert kind.shape(10, 6, SIZES[: kind.spatial]) == shape


def test_the_transposed_linear_layer_has_the_layout_of_transformers() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    shape = tuple(transformers.Conv1D(10, 6).weight.shape)
    assert KINDS["linear_transposed"].channels(shape) == (10, 6)


def test_attention_stacks_three_projections() -> None:
    shape = tuple(nn.MultiheadAttention(8, 2).in_proj_weight.shape)
    assert ATTENTION.channels(shape) == (ATTENTION.groups * 8, 8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.spatial], ids=str)
def test_inputs_of_one_group_are_counted(kind: Kind) -> None:
    convolution = type(MODULES[kind.name]())
    weight = convolution(6, 10, SIZES[: kind.spatial], groups=2).get_parameter("weight")
    outputs, inputs = (5, 6) if kind.is_transposed_convolution else (10, 3)
    assert kind.channels(tuple(weight.shape)) == (outputs, inputs)


@ALL_KINDS
def test_exchanging_the_layout_twice_changes_nothing(kind: Kind) -> None:
    weight = torch.rand(kind.shape(10, 6, SIZES[: kind.spatial]))
    exchanged = kind.outputs_first(weight)
    assert exchanged.shape == (10, 6, *SIZES[: kind.spatial])
    assert torch.equal(kind.outputs_first(exchanged), weight)


@REGRESSIONS
def test_folding_undoes_unfolding(kind: Kind) -> None:
    weight = torch.rand(kind.shape(12, 6, SIZES[: kind.spatial]), dtype=torch.float16)
    for groups in (1, 3):
        matrices = kind.unfold(weight, groups)
        assert matrices.shape == (groups, 12 // groups, weight.numel() // 12)
        folded = kind.fold(matrices.double(), weight)
        assert folded.dtype == weight.dtype
        assert torch.equal(folded, weight)


def test_outputs_are_products_with_the_unfolded_weight() -> None:
    x = torch.rand(5, 6, dtype=torch.float64)
    linear = torch.rand(10, 6, dtype=torch.float64)
    torch.testing.assert_close(x @ LINEAR.unfold(linear, 1)[0].mT, F.linear(x, linear))
    transposed = KINDS["linear_transposed"]
    torch.testing.assert_close(x @ transposed.unfold(linear.mT, 1)[0].mT, x @ linear.mT)
    kernel = torch.rand(10, 3, 2, 3, dtype=torch.float64)
    patch = torch.rand(1, 6, 2, 3, dtype=torch.float64)
    matrices = CONVOLUTIONS[2].unfold(kernel, 2)
    products = [matrix @ part.flatten() for matrix, part in zip(matrices, patch[0].chunk(2), strict=True)]
    torch.testing.assert_close(torch.cat(products), F.conv2d(patch, kernel, groups=2).flatten())


@ALL_KINDS
def test_the_predicates_follow_from_axes_and_layout(kind: Kind) -> None:
    is_transposed = kind.name.startswith("conv_transpose")
    assert kind.is_convolution == kind.name.startswith("conv")
    assert kind.is_transposed_convolution == is_transposed
    assert kind.is_plain_convolution == (kind.is_convolution and not is_transposed)
    assert kind.is_regression == (not is_transposed and kind is not EMBEDDING)
    assert kind.is_stored_transposed == (kind.name == "linear_transposed")
    assert kind.channel_axis == (1 if kind.is_convolution else -1)
    assert kind.pointwise.name == (f"conv{kind.spatial}d" if kind.is_convolution else "linear")


@pytest.mark.parametrize("bias", [True, False])
def test_names_of_tensors_are_those_of_a_state_dict(bias: bool) -> None:
    model = nn.ModuleDict({"fc": nn.Linear(8, 8, bias=bias), "attention": nn.MultiheadAttention(8, 2, bias=bias)})
    names = {
        kind.tensor_name(module, leaf)
        for kind, module in ((LINEAR, "fc"), (ATTENTION, "attention.in_proj"))
        for leaf in (("weight", "bias") if bias else ("weight",))
    }
    assert len(names) == 2 + 2 * bias
    assert names == {name for name in model.state_dict() if "out_proj" not in name}
    assert LINEAR.tensor_name("", "bias") == "bias", "the network is the layer itself"


def test_kinds_of_shapes_are_linear_layers_and_plain_convolutions() -> None:
    shapes: list[tuple[int, ...]] = [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 2), (4, 3, 2, 2, 2), (4, 3, 2, 2, 2, 2)]
    names = [kind.name if kind else None for kind in map(kind_of_shape, shapes)]
    assert names == [None, "linear", "conv1d", "conv2d", "conv3d", None]
