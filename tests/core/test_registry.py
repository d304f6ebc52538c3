import subprocess
import sys

import pytest

from lrzip.core.errors import UnknownName
from lrzip.core.registry import Registry

FRACTIONS = Registry("number", {"half": "fractions:Fraction", "missing": "no.such.module:Thing"})


def test_entries_are_imported_on_access() -> None:
    from fractions import Fraction

    assert FRACTIONS["half"] is Fraction
    with pytest.raises(ModuleNotFoundError):
        FRACTIONS["missing"]


def test_listing_names_imports_nothing() -> None:
    """In a process of its own, since this one may have imported the module already."""
    code = (
        "import sys; from lrzip.core.registry import Registry\n"
        "registry = Registry('x', {'a': 'colorsys:rgb_to_hsv'})\n"
        "assert list(registry) == ['a'] and 'a' in registry and len(registry) == 1\n"
        "assert 'colorsys' not in sys.modules\n"
        "assert callable(registry['a']) and 'colorsys' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_keep_their_order() -> None:
    assert list(FRACTIONS) == ["half", "missing"]
    assert len(FRACTIONS) == 2
    assert "half" in FRACTIONS
    assert "third" not in FRACTIONS


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(UnknownName, match=r"^Unknown number `third`\. Choose one of: half, missing\.$"):
        FRACTIONS["third"]


def test_later_changes_of_the_entries_have_no_effect() -> None:
    entries = {"half": "fractions:Fraction"}
    registry = Registry("number", entries)
    entries.clear()
    assert list(registry) == ["half"]
