"""Options that are declared: those of planning, outputs and training."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from lrzip.core import options, output_options, training_options
from lrzip.core.declarations import Declared, Group, declared

MODULES = (options, output_options, training_options)


def groups_of(module: ModuleType) -> Iterator[type[Group]]:
    for item in vars(module).values():
        if isinstance(item, type) and hasattr(item, "heading") and item.__module__ == module.__name__:
            yield item


DECLARED: list[Declared] = [item for module in MODULES for group in groups_of(module) for item in declared(group)]
NAMES = {item.name for item in DECLARED}


def test_every_module_declares_options() -> None:
    assert all(len(list(groups_of(module))) > 5 for module in MODULES)
    assert len(NAMES) > 80


@pytest.mark.parametrize("item", DECLARED, ids=lambda item: item.name)
def test_every_description_is_a_sentence_and_names_only_options_that_exist(item: Declared) -> None:
    assert item.option.help.endswith(".")
    assert set(item.option.help.split("`")[1::2]) <= NAMES | {"-"}
    assert {*item.option.goes_with, *item.option.needs} <= NAMES
    assert set(item.option.modes) <= {options.PLAN, options.CURVE, options.BOUND}


def test_a_name_has_the_same_flag_everywhere() -> None:
    flags: dict[str, set[str]] = {}
    for item in DECLARED:
        if item.flag:
            flags.setdefault(item.name, set()).add(item.flag)
    assert {name for name, found in flags.items() if len(found) > 1} == set()
    assert {item.name for item in DECLARED if item.flag} - flags.keys() == set()
