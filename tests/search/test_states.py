from pathlib import Path

import pytest
import torch

from lrzip.core.errors import LrzipError
from lrzip.search.states import States


@pytest.fixture(params=["memory", "folder"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> States:
    return States(tmp_path / "states" if request.param == "folder" else None)


def test_a_stored_state_is_returned(states: States) -> None:
    states.put("a", {"weight": torch.arange(3.0)})
    found = states.get("a")
    assert found is not None
    assert found.keys() == {"weight"}
    assert torch.equal(found["weight"], torch.arange(3.0))
    assert states.get("b") is None


def test_all_states_but_those_to_keep_are_deleted(states: States) -> None:
    for key in "abc":
        states.put(key, {})
    states.keep("a", "c")
    assert [states.get(key) is not None for key in "abc"] == [True, False, True]


def test_states_in_a_folder_outlive_the_process_and_truncated_ones_count_as_missing(tmp_path: Path) -> None:
    States(tmp_path / "states").put("a", {"weight": torch.ones(100)})
    (path,) = (tmp_path / "states").iterdir()
    assert States(tmp_path / "states").get("a") is not None
    path.write_bytes(path.read_bytes()[:200])
    assert States(tmp_path / "states").get("a") is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file")
    with pytest.raises(LrzipError, match=r"Could not write `.*states`: ") as raised:
        States(tmp_path / "states").put("a", {})
    assert "\n" not in str(raised.value)


def test_nothing_is_deleted_where_there_is_no_folder(tmp_path: Path) -> None:
    States(tmp_path / "states").keep()
    assert not (tmp_path / "states").exists()
