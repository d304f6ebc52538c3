"""Multi-head attention with factorized input projections, as a replacement of nn.MultiheadAttention."""

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PROJECTIONS = 3
"""Number of input projections (query, key, value), stacked by nn.MultiheadAttention as (3 · width, width)."""


class SplitAttention(nn.Module):
    """Multi-head attention whose three input projections are products of two matrices each.

    nn.MultiheadAttention reads `in_proj_weight` directly, so its projections cannot be replaced by modules. Here
    `in_proj` holds both stages: `in_proj.0.weight` (3 · rank, width), and `in_proj.1.weight` (3 · width, rank) with the
    bias (3 · width,). Query, key and value each use one third of the rows.

    Args:
        attention: Module to replace, with equal widths of query, key and value, without `add_bias_kv` and
            `add_zero_attn`. Its `out_proj` is shared.
        rank: Rank of each projection.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int) -> None:
        super().__init__()
        width = attention.embed_dim
        self.embed_dim, self.num_heads = width, attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        biased = attention.in_proj_bias is not None
        like = {"device": attention.in_proj_weight.device, "dtype": attention.in_proj_weight.dtype}
        self.in_proj = nn.ModuleList(
            [
                nn.Linear(width, PROJECTIONS * rank, bias=False, **like),
                nn.Linear(rank, PROJECTIONS * width, bias=biased, **like),
            ]
        )
        self.out_proj = attention.out_proj
        # Attributes that nn.TransformerEncoderLayer checks before it calls a kernel that reads the weights by name.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = True
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention with the arguments and return values of nn.MultiheadAttention.

        As there, `is_causal` is only a hint that `attn_mask` is causal.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        heads = [self._heads(part) for part in self._project(query, key, value)]
        mask = self._mask(heads[0], key_padding_mask, attn_mask)
        out, weights = self._attend(heads, mask, need_weights=need_weights)
        out = out.transpose(1, 2).flatten(2)
        out = self.out_proj(out if self.batch_first else out.transpose(0, 1))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        first, second = (stage.get_parameter("weight") for stage in self.in_proj)
        bias = self.in_proj[1]._parameters["bias"]
        biases = (None,) * PROJECTIONS if bias is None else bias.chunk(PROJECTIONS)
        if query is key and key is value:
            inner = F.linear(query, first).chunk(PROJECTIONS, -1)
        else:
            inner = tuple(F.linear(x, w) for x, w in zip((query, key, value), first.chunk(PROJECTIONS), strict=True))
        return [F.linear(x, w, b) for x, w, b in zip(inner, second.chunk(PROJECTIONS), biases, strict=True)]

    def _heads(self, x: Tensor) -> Tensor:
        """Split the width into heads: (batch, heads, length, width / heads)."""
        batch_first = x if self.batch_first else x.transpose(0, 1)
        return batch_first.reshape(*batch_first.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(self, query: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return the sum of both masks, which is added to scores of shape (batch, heads, queries, keys), or None."""
        total = None
        if mask is not None:
            total = _additive(mask, query)
            total = total.reshape(*query.shape[:2], *total.shape[1:]) if mask.dim() == 3 else total
        if padding is not None:
            ignored = _additive(padding, query)[:, None, None]
            total = ignored if total is None else total + ignored
        return total

    def _attend(
        self, heads: Sequence[Tensor], mask: Tensor | None, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = heads
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(query, key, value, mask, dropout), None
        scores = query @ key.mT / sqrt(query.shape[-1])
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout)
        return weights @ value, weights


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return an additive mask: minus infinity where a boolean mask is True."""
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
