import warnings

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.activations import Inputs, Window
from lrzip.core.kinds import LINEAR, TRANSPOSED_CONVOLUTIONS

CONVOLUTIONS = {
    "1d": (nn.Conv1d(6, 4, 5, stride=2, padding=3, dilation=2, bias=False), (3, 6, 30)),
    "2d": (nn.Conv2d(8, 4, 3, stride=(1, 2), padding=1, bias=False), (3, 8, 12, 11)),
    "same": (nn.Conv2d(8, 4, (5, 3), padding="same", bias=False), (3, 8, 12, 11)),
    "same-even": (nn.Conv2d(8, 4, (4, 3), padding="same", dilation=(1, 2), bias=False), (3, 8, 12, 11)),
    "valid": (nn.Conv2d(8, 4, (4, 3), padding="valid", bias=False), (3, 8, 12, 11)),
    "circular": (nn.Conv2d(8, 4, 3, padding=2, padding_mode="circular", bias=False), (3, 8, 12, 11)),
    "reflect": (nn.Conv2d(8, 4, 3, padding=2, padding_mode="reflect", bias=False), (3, 8, 12, 11)),
    "3d": (nn.Conv3d(3, 4, (1, 3, 2), padding=(0, 1, 1), bias=False), (2, 3, 4, 6, 5)),
    "groups": (nn.Conv2d(8, 6, 3, groups=2, padding=1, bias=False), (3, 8, 5, 6)),
    "pointwise": (nn.Conv2d(8, 4, 1, stride=2, bias=False), (3, 8, 5, 6)),
}


def inputs_of(layer: nn.Module, x: Tensor) -> Inputs:
    values = [getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")]
    return Inputs(LINEAR, tuple(x.chunk(getattr(layer, "groups", 1), 1)), Window.of(*values))


@pytest.mark.parametrize("nbytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_is_a_product_with_its_patches(case: tuple[nn.Module, tuple[int, ...]], nbytes: int) -> None:
    layer, shape = case
    x = torch.randn(shape)
    groups = getattr(layer, "groups", 1)
    weights = layer.get_parameter("weight").flatten(1).chunk(groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        expected = layer(x).chunk(groups, 1)
    pieces = list(inputs_of(layer, x).rows(nbytes, expected))
    for group, weight in enumerate(weights):
        products = torch.cat([piece[group] @ weight.mT for piece in pieces])
        beside = torch.cat([piece[groups + group] for piece in pieces])
        # Sums of at most 72 float32 products, in a different order.
        assert torch.allclose(products, beside, atol=1e-5)
        assert len(products) == expected[group].numel() // len(weight)


def test_pieces_have_a_bounded_size() -> None:
    layer = nn.Conv2d(8, 4, 3, padding=1)
    pieces = list(inputs_of(layer, torch.randn(3, 8, 12, 10)).rows(4 * 72 * 10 * 4))
    assert len(pieces) == 9  # four lines of ten positions with 72 elements each
    assert {len(rows) for (rows,) in pieces} == {40}


def test_rows_of_other_layers_are_their_channels_at_each_position() -> None:
    x = torch.randn(4, 7, 5)
    (rows,) = next(Inputs(LINEAR, (x,)).rows(1 << 20))
    assert torch.equal(rows, x.reshape(28, 5))
    (rows,) = next(Inputs(TRANSPOSED_CONVOLUTIONS[1], (x,)).rows(1 << 20))
    assert torch.equal(rows, x.mT.reshape(20, 7))


@pytest.mark.parametrize("most", [15, 40, 10_000])
def test_subsampled_inputs_are_evenly_spaced_lines_of_all_inputs(most: int) -> None:
    layer, x = nn.Conv2d(8, 4, 3, padding=1), torch.randn(3, 8, 12, 10)
    dense = inputs_of(layer, x)
    (everything,) = next(dense.rows(1 << 30))
    lines = everything.reshape(3, 12, 10, 72)  # samples, lines, positions of a line, columns
    (found,) = next(dense.subsampled(most, 0).rows(1 << 30))
    step = min(max(360 // most, 1), 12)
    torch.testing.assert_close(found.reshape(3, -1, 10, 72), lines[:, ::step], rtol=0, atol=0)


def test_successive_calls_sample_different_lines_that_together_are_all() -> None:
    layer, x = nn.Conv2d(8, 4, 3, padding=1), torch.randn(1, 8, 12, 10)
    dense = inputs_of(layer, x)
    step = dense.subsampled(40, 0).step
    parts = [next(dense.subsampled(40, number).rows(1 << 30))[0].reshape(-1, 10, 72) for number in range(step)]
    assert step == 3
    (everything,) = next(dense.rows(1 << 30))
    torch.testing.assert_close(torch.stack(parts, 1).reshape(120, 72), everything, rtol=0, atol=0)
