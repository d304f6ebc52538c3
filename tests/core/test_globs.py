import pytest

from lrzip.core.globs import matches


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("conv1", "conv1", True),
        ("layer1.conv1", "conv1", False),
        ("layer1.conv1", "*.conv1", True),
        ("layer1.conv1", "layer[12].*", True),
        ("layer3.conv1", "layer[12].*", False),
        ("a[0]", "a[0]", True),
        ("a0", "a[0]", True),
        ("a[1]", "a[0]", False),
        ("Conv", "conv", False),
    ],
)
def test_a_pattern_matches_full_names_and_a_name_itself(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, pattern) is expected
