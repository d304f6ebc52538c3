import pytest

from lrzip.core.errors import UsageError
from lrzip.ranks.amounts import UNITS, parse_amount, parse_size


@pytest.mark.parametrize(
    ("unit", "text", "amount"),
    [
        ("params", "50%", (0.5, True)),
        ("params", " .5 % ", (0.005, True)),
        ("params", "100%", (1.0, True)),
        ("params", "120000", (120_000, False)),
        ("params", "1.2M", (1_200_000, False)),
        ("nbytes", "64KiB", (65_536, False)),
        ("nbytes", "10MB", (10_000_000, False)),
        ("nbytes", "7", (7, False)),
        ("macs", "1.5G", (1_500_000_000, False)),
        ("latency", "5ms", (5_000_000, False)),
        ("latency", "800us", (800_000, False)),
        ("latency", "2s", (2_000_000_000, False)),
    ],
)
def test_an_amount_is_a_share_or_a_count(unit: str, text: str, amount: tuple[float, bool]) -> None:
    value, is_share = parse_amount(unit, text)
    assert value == pytest.approx(amount[0])
    assert is_share == amount[1]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("text", ["", "half", "-5%", "nan", "1e6", "5 5", "3x"])
def test_a_malformed_amount_is_refused_with_examples(unit: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"takes an amount such as {UNITS[unit].examples}, got `{text}`"):
        parse_amount(unit, text)


@pytest.mark.parametrize("unit", UNITS)
def test_every_example_in_a_message_is_an_amount(unit: str) -> None:
    examples = UNITS[unit].examples.replace(" or ", ", ").split(", ")
    assert len(examples) == 3
    assert all(parse_amount(unit, example)[0] > 0 for example in examples)


def test_a_share_above_the_whole_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Give at most 100%"):
        parse_amount("params", "100.1%")


@pytest.mark.parametrize(
    ("text", "nbytes"), [("500MB", 500_000_000), ("2GiB", 2 * 2**30), ("1.5kB", 1500), ("12", 12), ("3 B", 3)]
)
def test_a_size_is_a_number_of_bytes(text: str, nbytes: int) -> None:
    assert parse_size("memory", text) == nbytes


@pytest.mark.parametrize("text", ["", "50%", "10M", "1e9", "-1B"])
def test_a_malformed_size_is_refused_with_the_name_of_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=f"`memory` takes a size such as 500MB or 2GiB, got `{text}`"):
        parse_size("memory", text)
