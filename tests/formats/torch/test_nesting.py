"""State_dicts are found in nested dicts, and replaced in copies of them."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.torch.nesting import beside, descend, find_weights, optimizer_entries, rebuilt, refilled

PATH = Path("a.pt")
STATE = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "key", "steps"),
    [
        (STATE, None, ()),
        ({"model": STATE, "ema_state_dict": STATE}, None, ("ema_state_dict",)),
        ({"model": {"state_dict": STATE}}, None, ("model", "state_dict")),
        ({"x": STATE, "y": {"w": torch.ones(3)}}, None, ("y",)),
        ({"a.b": {"c": STATE}}, "a.b.c", ("a.b", "c")),
        ({"a": {"b.c": STATE}}, "a.b.c", ("a", "b.c")),
    ],
)
def test_the_state_dict_is_found(content: Any, key: str | None, steps: tuple[str, ...]) -> None:
    assert find_weights(PATH, content, key) == steps
    assert any(isinstance(value, torch.Tensor) for value in descend(content, steps).values())


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ([1], None, "holds a list, not a state_dict"),
        ({"a": 1}, None, "holds no state_dict. It has: a"),
        ({"a": STATE, "b": STATE}, None, "several state_dicts of one size. Choose with `key=NAME`: a, b"),
        ({"model": STATE}, "net", "no entry `net` of tensors. It has: model"),
    ],
)
def test_without_a_state_dict_the_entries_are_named(content: Any, key: str | None, message: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        find_weights(PATH, content, key)


def test_entries_beside_the_tensors_are_named_on_every_level() -> None:
    content = {"epoch": 1, "model": {"state_dict": {**STATE, "extra": 1}, "args": 2}}
    assert beside(content, ("model", "state_dict"), STATE) == ["extra", "epoch", "model.args"]


def test_a_copy_has_another_state_dict_and_lacks_dropped_entries() -> None:
    content = {"epoch": 1, "optimizer": {}, "model": {"state_dict": STATE, "args": 2}}
    found = rebuilt(content, ("model", "state_dict"), {"v": 3}, ["optimizer", "model.args"])
    assert found == {"epoch": 1, "model": {"state_dict": {"v": 3}}}
    assert content["model"] == {"state_dict": STATE, "args": 2}


def test_attributes_of_a_refilled_dict_are_preserved() -> None:
    mapping: Any = OrderedDict(a=1)
    mapping._metadata = {"version": 1}
    found = refilled(mapping, [("b", 2)])
    assert dict(found) == {"b": 2}
    assert found._metadata == {"version": 1}


def test_optimizer_states_are_recognized_by_their_last_name() -> None:
    names = ["epoch", "optimizer", "trainer.optim", "Optimizer_G", "my_optimizer"]
    assert optimizer_entries(names) == ["optimizer", "trainer.optim", "Optimizer_G"]
