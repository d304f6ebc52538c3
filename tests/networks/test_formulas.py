"""Operators of PyTorch count as their definitions say, whichever kernel computes them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lrzip.networks.counting import MacCounter

Shape: TypeAlias = tuple[int, ...]
# Sizes: batch, steps, inputs, hidden features.
B, T, X, H = 2, 5, 4, 3


def rand(*shape: int) -> Tensor:
    return torch.ones(shape)


def recurrent(module: nn.Module) -> Callable[[], Any]:
    return lambda: module.eval()(rand(T, B, X))


def packed() -> Any:
    """Sequences of 5 and 3 steps."""
    return nn.LSTM(X, H).eval()(pack_padded_sequence(rand(T, B, X), torch.tensor([5, 3])))


def attention(width: int = 8, heads: int = 2) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(width, heads, batch_first=True).eval()


def attend(query: Shape, key: Shape, value: Shape, **options: Any) -> Callable[[], Tensor]:
    return lambda: F.scaled_dot_product_attention(rand(*query), rand(*key), rand(*value), **options)


CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "linear": (lambda: F.linear(rand(2, 7, 3), rand(4, 3), rand(4)), 2 * 7 * 3 * 4),
    "mv": (lambda: rand(3, 4) @ rand(4), 3 * 4),
    "dot": (lambda: rand(4) @ rand(4), 4),
    "addmv": (lambda: torch.addmv(rand(3), rand(3, 4), rand(4)), 3 * 4),
    "addmm in place": (lambda: rand(3, 5).addmm_(rand(3, 4), rand(4, 5)), 3 * 4 * 5),
    "addbmm": (lambda: torch.addbmm(rand(3, 5), rand(2, 3, 4), rand(2, 4, 5)), 2 * 3 * 4 * 5),
    "baddbmm": (lambda: torch.baddbmm(rand(2, 3, 5), rand(2, 3, 4), rand(2, 4, 5)), 2 * 3 * 4 * 5),
    "broadcast matmul": (lambda: rand(2, 1, 3, 4) @ rand(5, 4, 6), 2 * 5 * 3 * 4 * 6),
    "tensordot": (lambda: torch.tensordot(rand(2, 3, 4), rand(4, 3, 5), ([1, 2], [1, 0])), 2 * 3 * 4 * 5),
    "integers": (lambda: torch._int_mm(*(torch.ones(32, 32, dtype=torch.int8),) * 2), 32**3),
    "distances": (lambda: torch.cdist(rand(30, 4), rand(40, 4)), 30 * 40 * 4),
    "einsum": (lambda: torch.einsum("bti,io->bto", rand(2, 3, 4), rand(4, 5)), 2 * 3 * 4 * 5),
    "einsum of three": (lambda: torch.einsum("bi,ij,bj->b", rand(2, 3), rand(3, 4), rand(2, 4)), 2 * 3 * 4 + 2 * 4),
    "elementwise einsum": (lambda: torch.einsum("bi,bi->bi", rand(2, 3), rand(2, 3)), 0),
    "bilinear": (lambda: F.bilinear(rand(2, 4), rand(2, 5), rand(3, 4, 5)), 2 * 3 * 4 * 5),
    "convolution": (lambda: F.conv2d(rand(2, 3, 8, 8), rand(4, 3, 3, 3), stride=2), 2 * 3 * 3 * 4 * 3 * 9),
    "unbatched": (lambda: F.conv2d(rand(3, 8, 8), rand(4, 3, 3, 3)), 6 * 6 * 4 * 3 * 9),
    "grouped": (lambda: F.conv1d(rand(2, 4, 9), rand(8, 2, 3), groups=2), 2 * 7 * 8 * 2 * 3),
    "depthwise": (lambda: F.conv2d(rand(2, 4, 5, 5), rand(8, 1, 3, 3), groups=4), 2 * 9 * 8 * 9),
    "transposed": (lambda: F.conv_transpose2d(rand(2, 4, 5, 5), rand(4, 3, 3, 3), groups=2), 2 * 25 * 4 * 3 * 9),
    "volume": (lambda: F.conv3d(rand(1, 2, 5, 5, 5), rand(4, 2, 3, 3, 3)), 27 * 4 * 2 * 27),
    "time first": (lambda: torch.conv_tbc(rand(7, 2, 4), rand(3, 4, 5), rand(5)), 5 * 2 * 3 * 4 * 5),
    "lstm": (recurrent(nn.LSTM(X, H)), T * B * 4 * H * (X + H)),
    "gru": (recurrent(nn.GRU(X, H)), T * B * 3 * H * (X + H)),
    "rnn": (recurrent(nn.RNN(X, H)), T * B * H * (X + H)),
    "stacked lstm": (
        recurrent(nn.LSTM(X, H, num_layers=2, bidirectional=True)),
        2 * T * B * 4 * H * (X + H) + 2 * T * B * 4 * H * (2 * H + H),
    ),
    "projected lstm": (recurrent(nn.LSTM(X, H, proj_size=2)), T * B * (4 * H * (X + 2) + 2 * H)),
    "packed lstm": (packed, (5 + 3) * 4 * H * (X + H)),
    "lstm cell": (lambda: nn.LSTMCell(X, H)(rand(B, X)), B * 4 * H * (X + H)),
    "attention": (attend((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4)), 2 * 5 * 6 * (4 + 4)),
    "masked": (attend((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4), attn_mask=rand(5, 6)), 2 * 5 * 6 * 8),
    "causal": (attend((1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4), is_causal=True), 2 * 5 * 5 * 8),
    "three axes": (attend((2, 5, 4), (2, 6, 4), (2, 6, 3)), 2 * 5 * 6 * (4 + 3)),
    "grouped queries": (attend((1, 4, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4), enable_gqa=True), 4 * 5 * 6 * 8),
    "fused module": (lambda: attention()(*(rand(2, 5, 8),) * 3), 4 * 2 * 5 * 64 + 2 * 2 * 5 * 5 * 8),
    "fused encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()(rand(2, 5, 8)),
        4 * 2 * 5 * 64 + 2 * 2 * 5 * 5 * 8 + 2 * 2 * 5 * 8 * 16,
    ),
    "bfloat16": (lambda: F.linear(rand(2, 3).bfloat16(), rand(4, 3).bfloat16()), 2 * 3 * 4),
    "embedding": (lambda: F.embedding(torch.zeros(3, dtype=torch.int64), rand(5, 4)), 0),
    "elementwise": (lambda: rand(3, 4) * rand(3, 4), 0),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", CASES)
def test_operators_count_by_their_definition(name: str) -> None:
    compute, expected = CASES[name]
    with torch.no_grad(), MacCounter() as counter:
        compute()
    assert (counter.macs, counter.not_counted) == (expected, None)


@pytest.mark.parametrize("name", ["linear", "baddbmm", "einsum", "convolution", "transposed", "gru"])
def test_what_pytorch_counts_is_counted_alike(name: str) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        CASES[name][0]()
    assert counter.get_total_flops() == 2 * CASES[name][1]
