"""Shapes of inputs are parsed, and random inputs have them."""

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.networks.inputs import InputShape, described, example_inputs, outputs_of, run


def test_shapes_name_their_dynamic_dimensions() -> None:
    shape = InputShape.parse("1,length=128,7:int64")
    assert shape == InputShape((1, 128, 7), ("batch", "length", None), "int64")


@pytest.mark.parametrize("text", ["", "1,eight", "0,8", "1,-8", "1,two words=8", "1,8,"])
def test_texts_that_are_no_shape_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="takes sizes such as"):
        InputShape.parse(text)


def test_dtypes_that_torch_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="`float33` is not a dtype of torch"):
        InputShape.parse("1,8:float33")


def test_integer_inputs_are_valid_indices() -> None:
    example = InputShape.parse("1,length=128,7:int64").example(3, torch.Generator().manual_seed(0))
    assert (tuple(example.shape), example.dtype) == ((3, 128, 7), torch.int64)
    assert set(example.flatten().tolist()) == {0, 1}


def test_random_inputs_are_the_same_at_each_call() -> None:
    shapes = [InputShape.parse("1,8"), InputShape.parse("1,8:float16")]
    first, second = (example_inputs(shapes, batch=2) for _ in range(2))
    assert [x.dtype for x in first] == [torch.float32, torch.float16]
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not first[0].equal(first[1].float())


def test_outputs_are_listed_in_the_order_of_their_nesting() -> None:
    def network(x: Tensor) -> dict[str, object]:
        return {"a": [x, 2 * x], "note": "text", "b": (3 * x,)}

    assert [float(y) for y in outputs_of(network, (torch.tensor(1.0),))] == [1, 2, 3]


def test_a_network_that_does_not_take_the_inputs_is_refused() -> None:
    with pytest.raises(LrzipError, match=r"does not take `input_shapes=1,9:float32`: RuntimeError"):
        run(nn.Linear(8, 8), [InputShape.parse("1,9")])


def test_inputs_are_described_without_their_batch() -> None:
    assert described({"x": torch.zeros(4, 3, 2), "ids": torch.zeros(4, dtype=torch.int64)}) == (
        "float32 (3, 2) and int64 ()"
    )
    assert described([1]) == "list"
