"""The first network within the bound is written early, and what was found is never lost."""

from pathlib import Path
from typing import Any

import pytest

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.search.trial import Trial
from tests.support.searches import compress
from tests.support.tasks import Deep


def parameters(path: Path) -> int:
    return sum(tensor.numel() for tensor in lrzip.load_into(Deep(), path).state_dict().values())


def failing_after(count: int, folder: Path, seen: list[tuple[Trial, bool]]) -> Any:
    """A callback that fails once some networks are within the bound."""

    def decided(trial: Trial) -> None:
        seen.append((trial, (folder / "small.pt").exists()))
        if sum(each.within for each, _ in seen) == count:
            raise RuntimeError("out of memory")

    return decided


def test_the_first_network_within_the_bound_is_written_at_once(folder: Path) -> None:
    seen: list[tuple[Trial, bool]] = []
    compress(folder, decided=lambda trial: seen.append((trial, (folder / "small.pt").exists())))
    within = [is_written for trial, is_written in seen if trial.within]
    assert within
    assert all(within)


@pytest.mark.parametrize("count", [1, 2])
def test_a_search_that_fails_leaves_the_smallest_network_so_far(count: int, folder: Path) -> None:
    seen: list[tuple[Trial, bool]] = []
    with pytest.raises(LrzipError, match=r"out of memory.*`.*small\.pt` holds the smallest network within the bound"):
        compress(folder, decided=failing_after(count, folder, seen))
    smallest = min(trial.parameters for trial, _ in seen if trial.within)
    assert parameters(folder / "small.pt") == smallest


def test_a_search_that_fails_before_leaves_nothing(folder: Path) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises((LrzipError, RuntimeError), match="out of memory"):
        compress(folder, max_drop=0, announce=fail)
    assert not (folder / "small.pt").exists()
