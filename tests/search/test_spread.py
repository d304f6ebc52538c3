import math

import pytest

from lrzip.search.spread import Spread, student_t


# Student's t at 97.5 % (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (99, 1.984)],
)
def test_quantiles_of_student_t_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert student_t(0.95, freedom) == pytest.approx(t, abs=6e-4)  # the tables round to 3 decimals


def test_the_confidence_interval_is_that_of_the_textbook() -> None:
    spread = Spread([1.0, 2.0, 3.0, 4.0])
    assert spread.mean == 2.5
    assert spread.std == pytest.approx(math.sqrt(5 / 3))
    assert spread.half_width == pytest.approx(3.1824 * math.sqrt(5 / 3) / 2, rel=1e-4)


def test_a_single_measurement_has_no_deviation() -> None:
    spread = Spread([1.0])
    assert (spread.mean, spread.std, spread.half_width) == (1.0, None, None)


def test_the_document_has_null_for_what_is_no_number() -> None:
    assert Spread([math.inf]).to_dict() == {"values": [None], "mean": None, "std": None, "ci95": None}
    assert Spread([1.0, 3.0]).to_dict().keys() == {"values", "mean", "std", "ci95"}
