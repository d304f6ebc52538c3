import ctypes
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lrzip.core.memory import keep_freed_blocks, return_large_blocks

# The parameters of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def options_set_by(function: Callable[[], None], monkeypatch: pytest.MonkeyPatch, platform: str) -> dict[int, int]:
    """Return the options that a function sets in a C library with `mallopt`."""
    options: dict[int, int] = {}
    library = SimpleNamespace(mallopt=lambda option, value: options.update({option: value}))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    monkeypatch.setattr(sys, "platform", platform)
    function()
    return options


def test_large_blocks_get_mappings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_set_by(return_large_blocks, monkeypatch, "linux")
    assert options == {MMAP_THRESHOLD: 4 << 20, TRIM_THRESHOLD: 8 << 20}


def test_blocks_up_to_two_gibibytes_are_kept_for_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_set_by(keep_freed_blocks, monkeypatch, "linux")
    assert options == {MMAP_THRESHOLD: (2 << 30) - 1, TRIM_THRESHOLD: (2 << 30) - 1}


@pytest.mark.parametrize("function", [return_large_blocks, keep_freed_blocks])
def test_other_systems_are_left_unchanged(function: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_set_by(function, monkeypatch, "darwin") == {}


@pytest.mark.parametrize("function", [return_large_blocks, keep_freed_blocks])
def test_a_c_library_without_mallopt_is_left_unchanged(
    function: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def open_library(name: object) -> SimpleNamespace:
        opened.append(name)
        return SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.setattr(sys, "platform", "linux")
    function()
    assert opened == [None]
