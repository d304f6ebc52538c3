"""Random inputs have the declared types and shapes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrzip.core.errors import NotCompared
from lrzip.formats.onnx.feeds import Given, feeds_of, random_feed, trials


def declared(name: str, kind: str, *shape: int | str | None) -> Any:
    return SimpleNamespace(name=name, type=f"tensor({kind})", shape=list(shape))


def test_symbolic_dimensions_of_one_name_have_one_size() -> None:
    inputs = [declared("x", "float", "n", 3, "width"), declared("y", "float", "n", "width", None)]
    feeds = [trial.feeds[0] for trial in trials(inputs, Given())]
    assert len(feeds) >= 10
    for feed in feeds:
        n, channels, width = feed["x"].shape
        assert channels == 3
        assert feed["y"].shape[:2] == (n, width)
    assert len({feed["x"].shape for feed in feeds}) == len(feeds) // 2  # normal inputs and pixels of each shape


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
    (feed,) = next(trials([declared("x", kind, 200)], Given())).feeds
    assert feed["x"].dtype == np.dtype(dtype)
    if "float" not in dtype:
        assert set(feed["x"].tolist()) == {0, 1}


def test_inputs_of_other_types_are_refused() -> None:
    with pytest.raises(NotCompared, match=r"the input `x` is a tensor\(string\)"):
        next(trials([declared("x", "string", 2)], Given()))


def test_huge_inputs_are_skipped() -> None:
    assert list(trials([declared("x", "float", 1 << 40)], Given())) == []


def test_inputs_are_the_same_at_each_call() -> None:
    first, second = (random_feed([declared("x", "float", "n")], [(4,)]) for _ in range(2))
    assert np.array_equal(first["x"], second["x"])


def test_integers_are_below_the_size_of_their_table_or_within_their_dtype() -> None:
    inputs = [declared("x", "int64", 5000), declared("y", "uint8", 5000), declared("z", "int64", 5000)]
    (feed,) = next(trials(inputs, Given(limits={"x": 1000, "y": 1000}))).feeds
    assert 900 < feed["x"].max() < 1000
    assert feed["y"].max() == 255
    assert feed["z"].max() == 1


def test_the_other_inputs_have_the_same_shapes_and_other_values() -> None:
    inputs = [declared("x", "float", "n", 3), declared("y", "int64", 4)]
    found = list(trials(inputs, Given(limits={"y": 1000})))
    assert found
    for trial in found:
        assert trial.other.keys() == {"x", "y"}
        for name, array in trial.other.items():
            assert array.shape == trial.feeds[0][name].shape
            assert not np.array_equal(array, trial.feeds[0][name])


def test_samples_come_in_the_declared_batch_size() -> None:
    x = np.arange(21.0).reshape(7, 3)
    feeds = list(feeds_of([declared("x", "float", 2, 3)], ([x], {})))
    assert [feed["x"].tolist() for feed in feeds] == [x[start : start + 2].tolist() for start in (0, 2, 4)]
    with pytest.raises(NotCompared, match="fewer samples than the batch"):
        next(trials([declared("x", "float", 9, 3)], Given(samples=[([x], {})])))


def test_as_many_shapes_are_given_as_there_are_inputs() -> None:
    with pytest.raises(NotCompared, match="the model takes 1 inputs, and `input_shapes` has 2"):
        next(trials([declared("x", "float", 2)], Given(shapes=[(2,), (3,)])))
