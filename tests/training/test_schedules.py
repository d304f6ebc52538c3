import pytest

from lrzip.training.schedules import epochs_since_best, rate_factor


def test_the_rate_rises_and_then_falls_as_a_cosine() -> None:
    factors = [rate_factor("cosine", step, 110, 10, []) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[109] < 0.001
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_a_constant_schedule_does_not_change_the_rate() -> None:
    assert {rate_factor("constant", step, 50, 0, [1.0, 0.5]) for step in range(50)} == {1.0}


def test_a_plateau_of_three_epochs_divides_by_ten() -> None:
    assert rate_factor("plateau", 9, 10, 0, [0.1, 0.5, 0.4, 0.4]) == 1
    assert rate_factor("plateau", 9, 10, 0, [0.1, 0.5, 0.4, 0.4, 0.5]) == pytest.approx(0.1)
    assert rate_factor("plateau", 9, 10, 0, [0.1, 0.5, 0.4, 0.4, 0.5, 0.6]) == 1


def test_epochs_are_counted_from_the_first_best() -> None:
    assert epochs_since_best([]) == 0
    assert epochs_since_best([1.0, 2.0, 2.0, 1.0]) == 2
