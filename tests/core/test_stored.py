from collections.abc import Mapping

import pytest

from lrzip.core.kinds import KINDS
from lrzip.core.layers import TensorSpec
from lrzip.core.stored import DenseLayer, Stored, find_structures
from lrzip.core.structure import Chain, Select, Stage, Sum, stages


def chains(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    specs = {name.replace("_", "."): TensorSpec(name.replace("_", "."), s, "float32", 0) for name, s in shapes.items()}
    return {stored.module: stored.replaced.shape for stored in find_structures(specs)}


def test_chains_are_recognized_by_names_and_shapes() -> None:
    assert chains(a_x_0_weight=(2, 30), a_x_1_weight=(40, 2), a_x_1_bias=(40,)) == {"a.x": (40, 30)}
    assert chains(x_0_weight=(2, 8, 3, 3), x_1_weight=(16, 2, 1, 1)) == {"x": (16, 8, 3, 3)}
    assert chains(x_0_weight=(2, 30), x_1_weight=(3, 2), x_2_weight=(40, 3)) == {"x": (40, 30)}
    assert chains(**{"0_weight": (2, 30), "1_weight": (40, 2)}) == {"": (40, 30)}
    assert chains(x_0_weight=(8, 4, 3, 3), x_1_weight=(16, 2, 1, 1)) == {"x": (16, 4, 3, 3)}, "in four groups"
    assert chains(x_0_weight=(2, 8, 1, 1), x_1_weight=(3, 2, 3, 5), x_2_weight=(16, 3, 1, 1)) == {"x": (16, 8, 3, 5)}
    assert chains(x_0_weight=(2, 8, 3, 1), x_1_weight=(16, 2, 1, 3)) == {"x": (16, 8, 3, 3)}
    assert chains(x_0_0_weight=(2, 30), x_0_1_weight=(40, 2), x_2_weight=(9, 40)) == {"x.0": (40, 30)}


@pytest.mark.parametrize(
    "shapes",
    [
        {"x_0_weight": (2, 30)},
        {"x_0_weight": (2, 30), "x_2_weight": (40, 2)},  # an activation between them
        {"x_0_weight": (2, 30), "x_0_bias": (2,), "x_1_weight": (40, 2)},
        {"x_0_weight": (3, 30), "x_1_weight": (40, 2)},
        {"x_0_weight": (20, 30), "x_1_weight": (40, 20)},  # larger than its product: two layers of the network itself
        {"x_0_weight": (2, 30), "x_1_weight": (40, 2), "x_1_scale": (40,)},
        {"x_0_weight": (2, 8, 3, 3), "x_1_weight": (16, 2, 3, 3)},
        {"x_0_weight": (2, 8, 3, 3), "x_1_weight": (16, 2)},
        {"x_0_weight": (2, 8, 3, 1), "x_1_weight": (16, 2, 3, 3)},  # two kernels along an axis
        {"x_0_weight": (2,), "x_1_weight": (40, 2)},
        {"x_0_weight": (4, 30), "x_1_weight": (40, 2)},  # linear layers have no groups
        {"x_0_weight": (6, 9, 3, 3), "x_1_weight": (16, 2, 1, 1)},  # 16 channels are not three groups
        {"x_0_weight": (64, 1, 3, 3), "x_1_weight": (128, 64, 1, 1)},  # depthwise-separable
    ],
)
def test_other_sequences_are_no_chains(shapes: dict[str, tuple[int, ...]]) -> None:
    assert chains(**shapes) == {}


def test_embeddings_and_transposed_layers_are_recognized_only_with_an_architecture() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "e": [(100, 4), (32, 4)],
        "t": [(4, 16, 1, 1), (4, 24, 2, 2)],
        "c": [(4, 60), (40, 4)],
    }
    specs = {
        f"{module}.{index}.weight": TensorSpec(f"{module}.{index}.weight", shape, "float32", 0)
        for module, pair in shapes.items()
        for index, shape in enumerate(pair)
    }
    assert [stored.module for stored in find_structures(specs)] == ["c"]
    kinds = {"e": "embedding", "t": "conv_transpose2d", "c": "linear_transposed", "none": "linear"}
    layers = {module: DenseLayer(KINDS[kind]) for module, kind in kinds.items()}
    found = {stored.module: stored.replaced.shape for stored in find_structures(specs, layers)}
    assert found == {"e": (100, 32), "t": (16, 24, 2, 2), "c": (60, 40)}


def specs_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, shape, "float32", 4) for name, shape in shapes.items()}


def stored_in(shapes: Mapping[str, tuple[int, ...]], dense: DenseLayer) -> Stored:
    (found,) = find_structures(specs_of(shapes), {"x": dense})
    return found


def test_stages_take_the_axes_along_which_they_have_a_kernel() -> None:
    found = stored_in({"x.0.weight": (5, 8, 3, 1), "x.1.weight": (16, 5, 1, 3)}, DenseLayer(KINDS["conv2d"]))
    assert [stage.axes for stage in stages(found.structure)] == [(True, False), (False, True)]
    found = stored_in({"x.0.weight": (5, 8, 1, 1), "x.1.weight": (16, 5, 1, 1)}, DenseLayer(KINDS["conv2d"]))
    assert [stage.axes for stage in stages(found.structure)] == [(True, True), (False, False)]
    found = stored_in({"x.0.weight": (5, 8, 1, 1), "x.1.weight": (5, 16, 1, 1)}, DenseLayer(KINDS["conv_transpose2d"]))
    assert [stage.axes for stage in stages(found.structure)] == [(False, False), (True, True)]


def test_a_stage_of_one_input_channel_after_several_is_depthwise() -> None:
    shapes = {
        "x.0.weight": (6, 16, 1, 1),
        "x.1.weight": (6, 1, 3, 1),
        "x.2.weight": (6, 1, 1, 3),
        "x.3.weight": (20, 6, 1, 1),
    }
    found = stored_in(shapes, DenseLayer(KINDS["conv2d"]))
    assert [stage.groups for stage in stages(found.structure)] == [1, 6, 6, 1]
    assert found.replaced == Stage(KINDS["conv2d"], (20, 16, 3, 3), 1, (True, True))


def test_a_first_depthwise_stage_is_recognized_by_the_shape_of_the_layer() -> None:
    shapes = {"x.0.weight": (16, 1, 3, 3), "x.1.weight": (20, 16, 1, 1)}
    found = stored_in(shapes, DenseLayer(KINDS["conv2d"], (20, 8, 3, 3)))
    assert [stage.groups for stage in stages(found.structure)] == [8, 1]


def test_a_structure_of_another_shape_than_the_layer_is_returned() -> None:
    shapes: dict[str, tuple[int, ...]] = {"x.0.weight": (2, 30), "x.1.weight": (40, 2)}
    assert stored_in(shapes, DenseLayer(KINDS["linear"], (41, 30))).replaced.shape == (40, 30)
    shapes = {"x.0.weight": (4, 16, 3, 3), "x.1.weight": (24, 4, 1, 1)}
    grouped = stored_in(shapes, DenseLayer(KINDS["conv2d"], (24, 16, 3, 3), 2))
    assert grouped.replaced.groups == 1, "each group of a layer in groups is factorized by itself"


def test_sums_and_selections_are_recognized_by_names() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "x.branches.0.0.weight": (2, 12),
        "x.branches.0.1.weight": (30, 2),
        "x.branches.1.0.index": (3,),
        "x.branches.1.1.weight": (30, 3),
        "x.branches.1.1.bias": (30,),
    }
    found = stored_in(shapes, DenseLayer(KINDS["linear"], (30, 12)))
    linear = KINDS["linear"]
    low_rank = Chain((Stage(linear, (2, 12)), Stage(linear, (30, 2))))
    assert found.structure == Sum((low_rank, Chain((Select(3), Stage(linear, (30, 3))))))
    assert found.bias
    assert [spec.name for spec in (*found.weights, found.bias)] == list(shapes)
    misplaced = shapes | {"x.branches.0.1.bias": (30,)}
    assert not find_structures(specs_of(misplaced), {"x": DenseLayer(linear, (30, 12))})
