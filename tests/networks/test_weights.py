"""Tensors are told apart by their names, shapes and dtypes."""

import pytest

from lrzip.core.layers import TensorSpec
from lrzip.networks.weights import is_parameter, not_a_weight


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("a.weight", "float32", True),
        ("a.weight", "bfloat16", True),
        ("a.weight", "float8_e4m3fn", True),
        ("ids", "int64", False),
        ("bn.running_mean", "float32", False),
        ("bn.running_var", "float32", False),
        ("bn.num_batches_tracked", "float32", False),
        ("n_averaged", "float32", False),
    ],
)
def test_statistics_and_integers_are_no_parameters(name: str, dtype: str, expected: bool) -> None:
    assert is_parameter(TensorSpec(name, (4,), dtype, 0)) == expected


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((), "float32", "a scalar"),
        ((4,), "float32", "a vector"),
        ((4, 0), "float32", "empty, (4, 0)"),
        ((4, 4), "int8", "int8, not one of bfloat16, float16, float32, float64"),
        ((2,) * 6, "float32", "6-dimensional"),
        ((4, 4), "bfloat16", None),
        ((2,) * 5, "float64", None),
    ],
)
def test_weights_are_matrices_of_floating_point(shape: tuple[int, ...], dtype: str, reason: str | None) -> None:
    assert not_a_weight(TensorSpec("x", shape, dtype, 0)) == reason
