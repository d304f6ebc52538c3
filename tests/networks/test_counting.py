import pytest
import torch
from torch import Tensor, nn

from lrzip.networks.counting import MacCounter, _may_multiply
from lrzip.networks.formulas import formulas


def test_operators_that_nothing_is_known_of_are_named() -> None:
    with torch.library._scoped_library("custom", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        with MacCounter() as counter:
            torch.ops.custom.twice(torch.ones(3))
    assert counter.not_counted == "the products of `custom.twice`"


@pytest.mark.parametrize("name", ["aten.quantized_lstm", "aten._sparse_addmm", "quantized.conv2d_relu", "mine.add"])
def test_operators_without_a_formula_may_multiply(name: str) -> None:
    assert _may_multiply(name)


@pytest.mark.parametrize(
    "name",
    ["aten.add", "aten.upsample_linear1d", "aten.cummax", "quantized.linear_prepack", "prims.sum"],
)
def test_other_operators_of_pytorch_do_not(name: str) -> None:
    assert not _may_multiply(name)


def test_formulas_are_of_operators_that_exist() -> None:
    known = {str(packet) for packet in formulas()}
    names = {schema.name.replace("::", ".") for schema in torch._C._jit_get_all_schemas()}
    assert {"aten.mkldnn_rnn_layer", "aten._trilinear", "aten._scaled_dot_product_flash_attention_for_cpu"} <= known
    assert known <= names


def test_a_context_can_be_counted_after_it_failed() -> None:
    counter = MacCounter()
    with pytest.raises(RuntimeError), counter:
        torch.ones(2, 3) @ torch.ones(2, 3)
    layer: nn.Module = nn.Linear(3, 4)
    with MacCounter() as again:
        out: Tensor = layer(torch.ones(2, 3))
    assert (out.shape, again.macs) == ((2, 4), 24)
