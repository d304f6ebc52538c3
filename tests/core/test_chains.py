import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrzip.core.chains import compose, find_chains, relative_error
from lrzip.core.layers import TensorSpec


def chains(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    specs = {name.replace("_", "."): TensorSpec(name.replace("_", "."), s, "float32", 0) for name, s in shapes.items()}
    return {chain.module: chain.dense_shape for chain in find_chains(specs)}


def test_chains_are_known_by_keys_and_shapes() -> None:
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
        {"x_0_weight": (20, 30), "x_1_weight": (40, 20)},  # larger than its product: somebody's own two layers
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


def test_kinds_that_only_an_architecture_tells() -> None:
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
    assert [chain.module for chain in find_chains(specs)] == ["c"]
    kinds = {"e": "embedding", "t": "conv_transpose2d", "c": "linear_transposed", "none": "linear"}
    found = {chain.module: chain.dense_shape for chain in find_chains(specs, kinds)}
    assert found == {"e": (100, 32), "t": (16, 24, 2, 2), "c": (60, 40)}


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5))
def test_composing_linear_stages_is_the_product(out: int, inner: int, rank: int) -> None:
    a, b = torch.rand(rank, inner), torch.rand(out, rank)
    torch.testing.assert_close(compose([a, b]), b @ a)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_composing_convolutions_is_running_them(out: int, inner: int, first: int, second: int, size: int) -> None:
    shapes = (first, inner, 1, 1), (second, first, size, 2), (out, second, 1, 1)
    weights = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    x = torch.rand(2, inner, 5, 6, dtype=torch.float64)
    expected = x
    for weight in weights:
        expected = torch.conv2d(expected, weight)
    torch.testing.assert_close(torch.conv2d(x, compose(weights)), expected)


def test_relative_error_is_that_of_the_dense_matrices() -> None:
    weight, a, b = torch.rand(3000, 4, 3), torch.rand(5, 4, 3), torch.rand(3000, 5, 1)
    expected = (weight - compose([a, b])).norm() / weight.norm()
    found = relative_error(weight.flatten(1), b.flatten(1), a.flatten(1))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_relative_error_of_a_zero_weight() -> None:
    zero = torch.zeros(4, 3)
    assert relative_error(zero, torch.zeros(4, 1), torch.zeros(1, 3)) == 0
    assert relative_error(zero, torch.ones(4, 1), torch.ones(1, 3)) == 1
