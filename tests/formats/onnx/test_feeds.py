"""Random inputs have the declared types and shapes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrzip.core.errors import NotCompared
from lrzip.formats.onnx.feeds import feed_of_shapes, random_feeds


def declared(name: str, kind: str, *shape: int | str | None) -> Any:
    return SimpleNamespace(name=name, type=f"tensor({kind})", shape=list(shape))


def test_symbolic_dimensions_of_one_name_have_one_size() -> None:
    inputs = [declared("x", "float", "n", 3, "width"), declared("y", "float", "n", "width", None)]
    feeds = list(random_feeds(inputs))
    assert len(feeds) >= 5
    for feed in feeds:
        n, channels, width = feed["x"].shape
        assert channels == 3
        assert feed["y"].shape[:2] == (n, width)
    assert len({feed["x"].shape for feed in feeds}) == len(feeds)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float", "float32"),
        ("double", "float64"),
        ("float16", "float16"),
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("bool", "bool"),
    ],
)
def test_inputs_have_the_declared_dtype(kind: str, dtype: str) -> None:
    (feed,) = [next(random_feeds([declared("x", kind, 200)]))]
    assert feed["x"].dtype == np.dtype(dtype)
    if "float" not in dtype:
        assert set(feed["x"].tolist()) == {0, 1}


def test_inputs_of_other_types_are_refused() -> None:
    with pytest.raises(NotCompared, match=r"the input `x` is a tensor\(string\)"):
        next(random_feeds([declared("x", "string", 2)]))


def test_huge_inputs_are_skipped() -> None:
    assert list(random_feeds([declared("x", "float", 1 << 40)])) == []


def test_inputs_are_the_same_at_each_call() -> None:
    first, second = (feed_of_shapes([declared("x", "float", "n")], [(4,)]) for _ in range(2))
    assert np.array_equal(first["x"], second["x"])
