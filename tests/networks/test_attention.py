"""SplitAttention computes what nn.MultiheadAttention does with the product of its factors."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import lrzip
from lrzip.core.kinds import ATTENTION, LINEAR
from lrzip.core.layers import Keep, Layer
from lrzip.core.merge import merge
from lrzip.core.structure import Chain, Stage
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.networks.attention import SplitAttention

WIDTH, HEADS, BATCH, QUERIES, KEYS = 12, 3, 4, 5, 7


def pair(**options: bool) -> tuple[nn.MultiheadAttention, SplitAttention]:
    """Return both, with the same weights of rank 4."""
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
    split = SplitAttention(dense, 4)
    stages = [stage.get_parameter("weight").detach() for stage in split.in_proj]
    structure = Chain(tuple(Stage(LINEAR, tuple(stage.shape), 3) for stage in stages))
    with torch.no_grad():
        dense.in_proj_weight.copy_(merge(structure, stages, Stage(ATTENTION, (3 * WIDTH, WIDTH), 3)))
        if dense.in_proj_bias is not None:
            split.in_proj[1].get_parameter("bias").copy_(dense.in_proj_bias.normal_())
    return dense, split


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def agree(dense: nn.Module, split: nn.Module, *inputs: Tensor, **options: object) -> None:
    for needs in (True, False):
        expected, found = (module(*inputs, need_weights=needs, **options) for module in (dense, split))
        for a, b in zip(expected, found, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)  # sums of a dozen products in float32


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_self_and_cross_attention(batch_first: bool, bias: bool) -> None:
    dense, split = pair(batch_first=batch_first, bias=bias)
    x, q, k, v = tensors((BATCH, QUERIES, WIDTH), (BATCH, QUERIES, WIDTH), (BATCH, KEYS, WIDTH), (BATCH, KEYS, WIDTH))
    if not batch_first:
        x, q, k, v = (t.transpose(0, 1) for t in (x, q, k, v))
    agree(dense, split, x, x, x)
    agree(dense, split, x, x, x, average_attn_weights=False)
    agree(dense, split, q, k, v)
    agree(dense, split, q[0] if batch_first else q[:, 0], *([k[0], v[0]] if batch_first else [k[:, 0], v[:, 0]]))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("per_head", [False, True])
def test_masks(kind: str, per_head: bool) -> None:
    dense, split = pair(batch_first=True)
    (x,) = tensors((BATCH, QUERIES, WIDTH))
    hidden = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    padding = torch.zeros(BATCH, QUERIES, dtype=torch.bool)
    padding[1, -2:] = True
    if kind == "float":
        hidden, padding = (torch.zeros(m.shape).masked_fill(m, -torch.inf) for m in (hidden, padding))
    mask = hidden.expand(BATCH * HEADS, -1, -1) if per_head else hidden
    agree(dense, split, x, x, x, attn_mask=mask)
    agree(dense, split, x, x, x, key_padding_mask=padding)
    agree(dense, split, x, x, x, attn_mask=mask, key_padding_mask=padding)
    agree(dense, split, x, x, x, attn_mask=mask, is_causal=True)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        split(x, x, x, is_causal=True)


class Model(nn.Module):
    """Encoder layers of torch, which take a fused kernel where they can."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x)
        return out


def test_transformers_of_torch_are_factorized_with_their_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "in_proj_weight" in name:
                parts = [torch.linalg.svd(part) for part in weight.chunk(3)]
                weight.copy_(torch.cat([(u[:, :5] * s[:5]) @ vh[:5] for u, s, vh in parts]))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    report = lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", energy=1 - 1e-9, model=Model(), only=["*.in_proj"])
    assert [(d.layer.name, str(d.layer.kind), d.ranks) for d in report.plan.factorize] == [
        (f"encoder.layers.{n}.self_attn.in_proj", "attention", (5,)) for n in (0, 1)
    ]
    keys = torch.load(tmp_path / "b.pt").keys()
    assert {f"encoder.layers.0.self_attn.in_proj.{leaf}" for leaf in ("0.weight", "1.weight", "1.bias")} <= keys
    loaded = lrzip.load_into(Model(), tmp_path / "b.pt").eval()
    live = lrzip.factorize(model, energy=1 - 1e-9, only=["*.in_proj"])
    (x,) = tensors((BATCH, QUERIES, 32))
    with torch.no_grad():
        for small in (loaded, live):
            assert isinstance(small.get_submodule("encoder.layers.1.self_attn"), SplitAttention)
            torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)  # two layers, float32
    lrzip.export(tmp_path / "b.pt", "dense", tmp_path / "c.pt", model=Model())
    with torch.no_grad():
        torch.testing.assert_close(
            lrzip.load_into(Model(), tmp_path / "c.pt").eval()(x), model(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("options", [{"kdim": 9}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_of_another_kind_is_kept(options: dict[str, int]) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, HEADS, **options)})
    found = LiveSource(model).layers(Architecture.of(model))
    assert not [item for item in found if isinstance(item, Layer)]
    reasons = [item.reason for item in found if isinstance(item, Keep) and "proj_weight" in item.tensor.name]
    assert all("attention" in reason for reason in reasons)


def test_its_costs_are_known(tmp_path: Path) -> None:
    torch.save(Model().state_dict(), tmp_path / "a.pt")
    options = {"model": Model().eval(), "input_shapes": ["2,6,32"], "latency": True, "dry_run": True}
    report = lrzip.compress(tmp_path / "a.pt", ratio=2, **options)  # type: ignore[arg-type]
    assert report.costs
    cost = report.costs.layers["encoder.layers.0.self_attn.in_proj"]
    assert cost.macs_before == 2 * 6 * 3 * 32 * 32
    assert cost.latency
