"""Multi-head attention with factorized input projections, in the place of nn.MultiheadAttention."""

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PROJECTIONS = 3
"""Query, key and value, whose weights nn.MultiheadAttention keeps in one tensor (3 · width, width)."""


class SplitAttention(nn.Module):
    """What nn.MultiheadAttention computes, with each of its three input projections a product of two matrices.

    nn.MultiheadAttention multiplies by `in_proj_weight` itself, so no chain of layers can stand there. Here `in_proj`
    holds the two stages, `in_proj.0.weight` (3 · rank, width), and `in_proj.1.weight` (3 · width, rank) with the bias,
    of which query, key and value take a third each.

    Args:
        attention: The module to replace: equal widths of query, key and value, no `add_bias_kv`, no `add_zero_attn`.
            Its `out_proj` becomes this module's.
        rank: Of each projection.
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
        # What nn.TransformerEncoderLayer looks at before it takes a kernel that reads weights by name.
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
        """Return what nn.MultiheadAttention returns for the same arguments.

        `is_causal` is a hint about `attn_mask`, as it is there.
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
        """Return (batch, heads, length, width / heads)."""
        batch_first = x if self.batch_first else x.transpose(0, 1)
        return batch_first.reshape(*batch_first.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(self, query: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, which broadcasts to (batch, heads, queries, keys)."""
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
    """Return a mask that is added: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
