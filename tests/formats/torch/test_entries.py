"""The entries of nested checkpoints that hold the weights are chosen by rules, and the others are named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.torch.entries import find_weights
from lrzip.formats.torch.nesting import descend

PATH = Path("a.pt")
STATE = {"w": torch.ones(2)}
NET = {"w": torch.ones(3, 2)}
LARGER = {"w": torch.ones(9, 2)}


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
    found = find_weights(PATH, content, key)
    assert found.entries == {"": steps}
    assert found.key == ".".join(steps)
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


AVERAGED = [
    "ema", "ema_model", "model_ema", "modelEMA", "EMA", "netG_ema", "averaged_model", "average_state_dict",
    "swa_state_dict", "swa_model", "shadow", "shadow_params", "params-ema", "state_dict_ema", "polyak", "avg_model",
]  # fmt: skip


@pytest.mark.parametrize("beside", ["model", "state_dict", "net", "weights", "module", "netG"])
@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_weights_are_preferred_under_all_their_names(name: str, beside: str) -> None:
    for entry, steps in ((NET, (name,)), ({"module": NET}, (name, "module")), ({"decay": 0.9, "x": NET}, (name, "x"))):
        found = find_weights(PATH, {beside: LARGER, name: entry, "epoch": 3}, None)
        assert found.entries == {"": steps}
        assert found.rivals == [beside]


def test_counters_of_an_average_are_not_weights() -> None:
    content = {"model": NET, "ema": {"decay": torch.tensor(0.9), "updates": torch.ones(4)}}
    assert find_weights(PATH, content, None) == find_weights(PATH, {"model": NET}, None)


def test_a_teacher_is_an_average_only_if_it_is_the_same_network() -> None:
    assert find_weights(PATH, {"student": NET, "teacher": NET}, None).key == "teacher"
    assert find_weights(PATH, {"model": NET, "teacher": LARGER}, None).key == "model"


def test_the_largest_of_several_networks_is_taken_on_any_level() -> None:
    for content in ({"netG": NET, "netD": LARGER}, {"net": {"netG": NET, "netD": LARGER}}):
        found = find_weights(PATH, content, None)
        assert found.key.endswith("netD")
        assert [name.rpartition(".")[2] for name in found.rivals] == ["netG"]


def test_the_state_of_an_optimizer_is_no_network() -> None:
    content = {"x": NET, "optimizer": {"state": {"a": LARGER}}, "Optim_D": {"b": LARGER}}
    assert find_weights(PATH, content, None).rivals == []
    assert find_weights(PATH, content, None).key == "x"


def test_several_entries_are_taken_together_with_their_names_as_prefixes() -> None:
    found = find_weights(PATH, {"net": {"G": NET, "D": LARGER}, "ema": NET}, ["net.G", "net.D"])
    assert found.entries == {"net.G.": ("net", "G"), "net.D.": ("net", "D")}
    assert (found.key, found.rivals) == ("net.G, net.D", ["ema"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["net.G", "x"], "no entry `x` of tensors. It has: net, ema"),
        ("net", "no entry `net` of tensors. It has: net.G, net.D"),
        (["mix", "mix.inner"], "`key=mix` contains another of the entries"),
    ],
)
def test_entries_that_do_not_hold_one_state_dict_are_refused(keys: Any, message: str) -> None:
    content = {"net": {"G": NET, "D": LARGER}, "ema": NET, "mix": {**NET, "inner": NET}}
    with pytest.raises(UnsupportedCheckpoint, match=message):
        find_weights(PATH, content, keys)


def test_dicts_that_contain_each_other_end() -> None:
    content: dict[str, Any] = {"a": {}, "w": NET["w"]}
    content["a"] |= {"b": content, "c": content}
    with pytest.raises(UnsupportedCheckpoint, match="several state_dicts of one size"):
        find_weights(PATH, content, None)
