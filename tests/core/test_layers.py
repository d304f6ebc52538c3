import pytest
import torch

from lrzip.core.kinds import CONVOLUTIONS, EMBEDDING, LINEAR, LINEAR_TRANSPOSED, TRANSPOSED_CONVOLUTIONS, Kind
from lrzip.core.layers import FACTORIZABLE_DTYPES, ROOT, Group, Layer, TensorSpec, by_module
from lrzip.core.structure import Stage
from tests.support.candidates import linear_layer


def of_kind(shape: tuple[int, ...], kind: Kind, groups: int = 1) -> Layer:
    return Layer("x", "x", kind, TensorSpec("x.weight", shape, "float32", 4), None, groups)


@pytest.mark.parametrize("dtype", FACTORIZABLE_DTYPES)
def test_dtypes_that_can_be_factorized_have_the_size_of_an_element(dtype: str) -> None:
    assert torch.zeros(1, dtype=getattr(torch, dtype)).nbytes == FACTORIZABLE_DTYPES[dtype]
    assert TensorSpec("x", (3, 4), dtype, 0).is_floating_point


def test_other_dtypes_are_no_floating_point() -> None:
    assert not any(TensorSpec("x", (3,), dtype, 0).is_floating_point for dtype in ("int64", "bool", "f4"))


def test_the_unfolding_of_a_group_is_its_rows_by_all_other_axes() -> None:
    layer = of_kind((12, 4, 3, 5), CONVOLUTIONS[2], 2)
    assert layer.matrix_shape == (6, 4 * 3 * 5)
    assert layer.stage == Stage(CONVOLUTIONS[2], (12, 4, 3, 5), 2, (True, True))
    assert (layer.stage.outputs, layer.stage.inputs) == (12, 8)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (of_kind((10, 6), LINEAR), 6),
        (of_kind((6, 10), LINEAR_TRANSPOSED), 6),
        (of_kind((6, 10), EMBEDDING), 6),
        (of_kind((10, 6, 3), CONVOLUTIONS[1]), 18),
        (of_kind((10, 3, 3), CONVOLUTIONS[1], 2), 9),
        (of_kind((6, 10, 3), TRANSPOSED_CONVOLUTIONS[1]), 6),
    ],
)
def test_the_input_size_is_that_of_the_vectors_that_multiply_the_unfolding(layer: Layer, size: int) -> None:
    assert layer.input_size == size


def test_names_below_a_layer_have_the_prefixes_of_the_file() -> None:
    spec = TensorSpec("module.a.weight", (4, 3), "float32", 48)
    layer = Layer("a", "module.a", LINEAR, spec, None)
    assert (layer.path, layer.key("0.weight")) == ("a", "module.a.0.weight")
    root = Layer(ROOT, "", LINEAR, spec.renamed("weight"), None)
    assert (root.path, root.key("0.weight")) == ("", "0.weight")


def test_a_layer_that_is_kept_has_its_weight_and_a_reason() -> None:
    layer = linear_layer(4, 3, "a")
    keep = layer.kept("too small")
    assert (keep.name, keep.tensor, keep.reason) == ("a", layer.weight, "too small")


def test_a_group_is_named_after_its_layers() -> None:
    layers = linear_layer(4, 3, "q"), linear_layer(4, 3, "k")
    assert Group(layers).name == "q+k"
    assert Group(layers[:1]).name == "q"


def test_tensors_are_listed_below_every_module_of_their_names() -> None:
    specs = {name: TensorSpec(name, (), "float32", 4) for name in ("a.b.weight", "a.b.bias", "a.c.0.weight", "scale")}
    modules = by_module(specs)
    assert {path: set(names) for path, names in modules.items()} == {
        "": set(specs),
        "a": {"b.weight", "b.bias", "c.0.weight"},
        "a.b": {"weight", "bias"},
        "a.c": {"0.weight"},
        "a.c.0": {"weight"},
    }
    assert modules["a"]["b.bias"] is specs["a.b.bias"]
