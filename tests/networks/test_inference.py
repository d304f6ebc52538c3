"""Layers are inferred from names and shapes, and kept where they are ambiguous."""

from collections.abc import Mapping

import pytest

from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.networks.inference import infer_layers

Shapes = Mapping[str, tuple[int, ...]]


def specs(shapes: Shapes, dtype: str = "float32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, shape, dtype, 0) for name, shape in shapes.items()}


def infer(shapes: Shapes, **options: str) -> dict[str, Layer | Keep]:
    return {item.name: item for item in infer_layers(specs(shapes), **options)}  # type: ignore[arg-type]


def kept(shapes: Shapes, name: str) -> Keep:
    item = infer(shapes)[name]
    assert isinstance(item, Keep)
    return item


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"x.weight": (8, 4), "x.bias": (8,)}, "linear"),
        ({"x.weight": (8, 4)}, "linear"),
        ({"x.weight": (8, 8)}, "linear"),
        ({"x.weight": (8, 4, 3)}, "conv1d"),
        ({"x.weight": (8, 4, 3, 3), "x.bias": (8,)}, "conv2d"),
        ({"x.weight": (1, 4, 3, 3)}, "conv2d"),
        ({"x.weight": (8, 4, 1, 1)}, "conv2d"),
        ({"x.weight": (8, 4, 2, 2, 2)}, "conv3d"),
    ],
)
def test_plain_layers_are_recognized_by_their_shapes(shapes: Shapes, kind: str) -> None:
    item = infer(shapes)["x"]
    assert isinstance(item, Layer)
    assert str(item.kind) == kind
    assert (item.bias is not None) == ("x.bias" in shapes)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"x.weight": (4, 8), "x.bias": (8,)}, "GPT-2 Conv1D"),
        ({"x.weight": (4, 8, 3, 3), "x.bias": (8,)}, "transposed convolution"),
        ({"x.weight": (4, 8), "x.bias": (5,)}, "fits neither dimension"),
        ({"x.weight": (4,)}, "a vector"),
        ({"x.weight": ()}, "a scalar"),
        ({"x.weight": (4, 0)}, "empty"),
        ({"x.weight": (2, 2, 2, 2, 2, 2)}, "6-dimensional"),
    ],
)
def test_other_tensors_are_kept_with_the_reason(shapes: Shapes, reason: str) -> None:
    item = kept(shapes, "x")
    assert reason in item.reason
    assert item.override is None


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("lstm.weight_ih_l0", (32, 8), "recurrent"),
        ("lstm.weight_hh_l1_reverse", (32, 8), "recurrent"),
        ("cell.weight_hh", (32, 8), "recurrent"),
        ("attn.in_proj_weight", (24, 8), "nn.MultiheadAttention"),
        ("pos", (16, 8), "not named `weight`"),
    ],
)
def test_matrices_of_other_modules_are_kept(name: str, shape: tuple[int, ...], reason: str) -> None:
    assert reason in kept({name: shape}, name).reason


@pytest.mark.parametrize(
    "name", ["embed_tokens", "wte", "transformer.wpe", "word_embeddings", "tok_emb", "emb", "shared", "model.Embedding"]
)
def test_embeddings_are_recognized_by_their_names(name: str) -> None:
    assert kept({f"{name}.weight": (100, 8)}, name).reason == "embedding"
    assert isinstance(infer({f"{name}.weight": (100, 8), f"{name}.bias": (100,)})[name], Layer)


def test_the_output_projection_of_multihead_attention_is_read_directly() -> None:
    shapes = {
        "a.in_proj_weight": (24, 8),
        "a.out_proj.weight": (8, 8),
        "a.out_proj.bias": (8,),
        "b.out_proj.weight": (8, 8),
    }
    found = infer(shapes)
    assert isinstance(found["a.out_proj"], Keep)
    assert isinstance(found["b.out_proj"], Layer)
    assert isinstance(infer({"in_proj_weight": (24, 8), "out_proj.weight": (8, 8)})["out_proj"], Keep)


@pytest.mark.parametrize(
    ("shapes", "name", "ambiguity"),
    [
        ({"x.weight": (8, 1, 3, 3)}, "x", "may be depthwise"),
        ({"x.weight": (8, 1, 3)}, "x", "may be depthwise"),
        ({"attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,)}, "attn.qkv", "fused attention"),
        ({"up.deconv.weight": (8, 8, 2, 2)}, "up.deconv", "may be a transposed convolution"),
        (
            {"a.c_proj.weight": (8, 8), "a.c_proj.bias": (8,), "b.c_proj.weight": (32, 8), "b.c_proj.bias": (8,)},
            "a.c_proj",
            "other layers named `c_proj` are stored transposed",
        ),
        (
            {"conv1.weight": (64, 3, 7, 7), "a.weight": (128, 64, 1, 1), "b.weight": (128, 4, 3, 3)},
            "b",
            "may be a grouped convolution",
        ),
        ({"x.0.weight": (2, 30), "x.1.weight": (40, 2)}, "x.0", "already factorized"),
        ({"x.0.weight": (2, 8, 3, 3), "x.1.weight": (16, 2, 1, 1), "x.1.bias": (16,)}, "x.1", "already factorized"),
    ],
)
def test_ambiguous_layers_are_kept_unless_they_are_named(shapes: Shapes, name: str, ambiguity: str) -> None:
    item = kept(shapes, name)
    assert ambiguity in item.reason
    assert "`--only`" in item.reason
    assert item.override
    assert item.override.weight.shape == shapes[f"{name}.weight"]


def test_narrow_convolutions_are_not_mistaken_for_grouped_ones() -> None:
    shapes = {
        "stem.weight": (16, 4, 3, 3),  # no tensor has four output channels, but it comes first
        "reduce.weight": (4, 16, 1, 1),
        "expand.weight": (16, 4, 3, 3),  # follows a layer with four output channels
        "rgb.weight": (16, 3, 3, 3),
        "concat.weight": (16, 20, 1, 1),
    }
    assert all(isinstance(item, Layer) for item in infer(shapes).values())


def test_biases_belong_to_layers_and_are_listed_otherwise() -> None:
    shapes = {
        "fc.weight": (8, 4),
        "fc.bias": (8,),
        "bn.weight": (8,),
        "bn.bias": (8,),
        "c.weight": (8, 1, 3),
        "c.bias": (8,),
    }
    assert list(infer(shapes)) == ["fc", "bn", "bn.bias", "c", "c.bias"]


def test_integers_and_eight_bit_floats_are_kept() -> None:
    for dtype in ("int8", "float8_e4m3fn", "f4"):
        (item,) = infer_layers(specs({"x.weight": (8, 8)}, dtype))
        assert isinstance(item, Keep)
        assert item.reason.startswith(dtype)


def test_the_root_module_has_a_name() -> None:
    item = infer({"weight": (8, 4), "bias": (8,)})["(root)"]
    assert isinstance(item, Layer)
    assert item.key("0.weight") == "0.weight"


@pytest.mark.parametrize("other", ["fc.scale", "fc.0.weight", "fc.lora_A.weight", "fc.weight_scale"])
def test_a_module_that_holds_more_than_a_layer_is_kept(other: str) -> None:
    shapes = {"fc.weight": (8, 8), "fc.bias": (8,), other: (8, 8), "fc1.weight": (8, 8)}
    found = {item.name: item for item in infer_layers(specs(shapes))}
    kept_item = found["fc"]
    assert isinstance(kept_item, Keep)
    assert kept_item.reason == f"its module also holds `{other}`"
    assert isinstance(found["fc1"], Layer)
