import json

import pytest

from lrzip.core.numbers import finite


@pytest.mark.parametrize("value", [0.0, -0.0, 1e308, 5e-324, 3])
def test_finite_numbers_are_unchanged(value: float) -> None:
    assert finite(value) is value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_numbers_that_json_lacks_become_none(value: float | None) -> None:
    assert finite(value) is None
    assert json.dumps(finite(value), allow_nan=False) == "null"
