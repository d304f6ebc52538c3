"""Layers are inferred from names and shapes, and kept where they are ambiguous."""

from collections.abc import Callable, Mapping

import pytest

from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.networks.inference import infer_layers

Shapes = Mapping[str, tuple[int, ...]]


def specs(shapes: Shapes, dtype: str = "float32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, shape, dtype, 0) for name, shape in shapes.items()}


def infer(shapes: Shapes, **options: str) -> dict[str, Layer | Keep]:
    return {item.name: item for item in infer_layers(specs(shapes), **options)}  # type: ignore[arg-type]


def item_shape(item: Layer | Keep) -> tuple[int, ...]:
    return (item.weight if isinstance(item, Layer) else item.tensor).shape


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


@pytest.mark.parametrize("name", ["a.qkv", "query_key_value", "a.in_proj", "a.qkv_proj", "a.Wqkv", "h.attn.c_attn"])
@pytest.mark.parametrize("biased", [False, True])
def test_fused_projections_are_linear_layers(name: str, biased: bool) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (24, 8), "norm.weight": (8,), "norm.bias": (8,)}
    if biased:
        shapes[f"{name}.bias"] = (24,)
    assert isinstance(infer(shapes)[name], Layer)


@pytest.mark.parametrize(
    ("shapes", "name", "ambiguity"),
    [
        ({"x.weight": (8, 1, 3, 3)}, "x", "may be depthwise"),
        ({"x.weight": (8, 1, 3)}, "x", "may be depthwise"),
        ({"m.in_proj.weight": (24, 8), "m.A_log": (24, 4)}, "m.in_proj", "may be read directly by the mixer"),
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


@pytest.mark.parametrize(
    "name",
    [
        "emb_l.0", "embeds.1", "embedder.embeddings.0", "model.token_embed.0.0", "user_factors", "item_factors",
        "codebook", "quantizer.codebooks.2", "EmbeddingBag", "bias.relative_attention_bias", "catEmbeds.3",
    ],
)  # fmt: skip
def test_every_part_of_a_path_may_name_an_embedding(name: str) -> None:
    assert kept({f"{name}.weight": (400, 32)}, name).reason == "embedding"


@pytest.mark.parametrize(
    "name", ["embed.proj", "embeddings.0.linear", "time_embed.fc1", "embedder.mlp.0", "emb.q_proj"]
)
def test_the_last_name_that_says_something_decides(name: str) -> None:
    assert isinstance(infer({f"{name}.weight": (400, 32)})[name], Layer)


@pytest.mark.parametrize("name", ["user", "items.0", "tokens", "pos", "entities", "embed_out", "tables.1"])
def test_names_that_may_be_those_of_embeddings_are_doubtful(name: str) -> None:
    item = kept({f"{name}.weight": (400, 32)}, name)
    assert "may be an embedding, by its name" in item.reason
    assert item.override


BLOCK: Shapes = {"a.fc1.weight": (64, 32), "a.fc1.bias": (64,), "a.fc2.weight": (32, 64), "a.fc2.bias": (32,)}


def test_a_matrix_without_bias_whose_rows_nothing_takes_may_be_an_embedding() -> None:
    for rows, doubtful in ((700, True), (64, False), (96, False)):  # 64 inputs of `fc2`, and 3 × 32 of `fc1`
        item = infer({"u.weight": (rows, 32), **BLOCK})["u"]
        assert isinstance(item, Keep if doubtful else Layer), rows
    assert "no tensor here takes 700 inputs" in kept({"u.weight": (700, 32), **BLOCK}, "u").reason
    assert isinstance(infer({"lm_head.weight": (700, 32), **BLOCK})["lm_head"], Layer)
    assert isinstance(infer({"b.0.weight": (32, 64), "b.2.weight": (700, 32), **BLOCK})["b.2"], Layer)


DCGAN: Shapes = {
    "main.0.weight": (100, 128, 4, 4),
    "main.1.weight": (128,),
    "main.3.weight": (128, 64, 4, 4),
    "main.4.weight": (64,),
    "main.6.weight": (64, 3, 4, 4),
}


@pytest.mark.parametrize("order", [list, sorted])
def test_norms_reveal_transposed_convolutions_in_any_order(order: Callable[[Shapes], list[str]]) -> None:
    for name in ("main.0", "main.3", "main.6"):
        item = kept({name: DCGAN[name] for name in order(DCGAN)}, name)
        assert item.reason == "transposed convolution by the norm beside it"
        assert item.override is None


def test_the_norms_of_ordinary_convolutions_reveal_nothing() -> None:
    after = {"0.weight": (128, 64, 3, 3), "1.weight": (128,), "3.weight": (32, 128, 3, 3), "4.weight": (32,)}
    before = {
        "norm1.weight": (64,),
        "conv1.weight": (128, 64, 3, 3),
        "norm2.weight": (128,),
        "z.weight": (32, 128, 3, 3),
    }
    for shapes in (after, before, dict(sorted(before.items()))):
        assert not any(isinstance(item, Keep) for item in infer(shapes).values() if len(item_shape(item)) > 1)


def test_sizes_of_numbered_layers_reveal_transposed_convolutions_without_norms() -> None:
    shapes = {"ups.0.weight": (512, 256, 4, 4), "ups.1.weight": (256, 128, 4, 4), "ups.2.weight": (128, 1, 4, 4)}
    assert "by the sizes of the layers beside it" in kept(shapes, "ups.0").reason
    assert "by the sizes of the layers beside it" in kept(shapes, "ups.1").reason


@pytest.mark.parametrize(
    ("shape", "is_doubtful"),
    [
        ((24, 40, 40), True), ((24, 20, 30), True), ((6, 5, 5), True), ((8, 512, 256), True),
        ((64, 40, 3), False), ((512, 512, 8), False), ((64, 3, 3), False), ((64, 32, 7, 7), False),
    ],
)  # fmt: skip
def test_axes_that_are_too_long_for_kernels_are_doubtful(shape: tuple[int, ...], is_doubtful: bool) -> None:
    for shapes in ({"x.weight": shape}, {"x.weight": shape, "x.bias": shape[:1]}):
        item = infer(shapes)["x"]
        assert isinstance(item, Keep if is_doubtful else Layer)
    assert isinstance(infer({"conv.weight": shape, "conv.bias": shape[:1]})["conv"], Layer)


def test_the_layer_before_reveals_groups_even_if_another_tensor_has_their_width() -> None:
    squeeze = {"se.fc.weight": (4, 128, 1, 1), "se.fc.bias": (4,)}
    by_norm = {"conv1.weight": (128, 64, 1, 1), "bn1.weight": (128,), "conv2.weight": (128, 4, 3, 3), **squeeze}
    by_number = {name: shape for name, shape in sorted(by_norm.items()) if name != "bn1.weight"}
    for shapes in (by_norm, by_number):
        assert "grouped convolution, by the width of the layer before it" in kept(shapes, "conv2").reason


def test_the_number_of_a_block_reveals_groups_in_a_sorted_file() -> None:
    shapes = {
        "b.conv1_1x1.bn.weight": (64,),
        "b.conv1_1x1.conv.weight": (64, 256, 1, 1),
        "b.conv2_kxk.bn.weight": (64,),
        "b.conv2_kxk.conv.weight": (64, 32, 3, 3),
        "c.weight": (32, 64, 3, 3),
    }
    assert "grouped convolution, by the width of the layer before it" in kept(shapes, "b.conv2_kxk.conv").reason
    assert isinstance(infer({**shapes, "b.conv1_1x1.bn.weight": (32,)})["b.conv2_kxk.conv"], Layer)


def test_square_weights_between_transposed_ones_are_doubtful() -> None:
    shapes = {**DCGAN, "main.7.weight": (64, 64, 5, 5)}
    assert "stored transposed" in kept(shapes, "main.7").reason


def test_the_time_to_recognize_a_name_does_not_grow_with_its_square() -> None:
    long = "a" * 400_000
    dots = "a." * 200_000
    names = [f"{long}.weight", f"{dots}weight", f"{long}_emb{long}.weight", f"{long}deconv.weight"]
    assert len(infer({name: (8, 4) if "deconv" not in name else (8, 4, 3) for name in names})) == len(names)
