"""State_dicts are found in nested dicts, and replaced in copies of them."""

from collections import OrderedDict
from typing import Any

import torch

from lrzip.formats.torch.nesting import beside, merged, optimizer_entries, rebuilt, refilled

STATE = {"w": torch.ones(2)}


def test_entries_beside_the_tensors_are_named_on_every_level() -> None:
    content = {"epoch": 1, "model": {"state_dict": STATE, "args": 2}}
    assert beside(content, [("model", "state_dict")]) == ["epoch", "model.args"]


def test_several_state_dicts_are_merged_under_prefixes() -> None:
    content = {"epoch": 1, "G": {"w": 2}, "net": {"D": {"w": 3}, "step": 4}}
    entries = {"G.": ("G",), "net.D.": ("net", "D")}
    assert merged(content, entries) == {"G.w": 2, "net.D.w": 3}
    assert beside(content, entries.values()) == ["epoch", "net.step"]


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
