"""Replace names of parameters by flags in the library's messages and descriptions."""

import re
from collections.abc import Mapping

from lrzip.core import options, output_options, training_options
from lrzip.core.declarations import declared

_VALUE = re.compile(r"`(\w+)=([^`]*)`")
_NAME = re.compile(r"`(\w+)`")
_SHOWN = 80
_LONG = re.compile(r"[^`\s]{200,}")


def _flags() -> Mapping[str, str]:
    modules = (options, output_options, training_options)
    groups = [
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and hasattr(item, "heading")
    ]
    return {item.name: item.flag for item in declared(*groups) if item.flag}


FLAGS: Mapping[str, str] = _flags()
"""The flag of each parameter, of all commands."""


def with_flags(text: str) -> str:
    """Return a text with each `name=value` of a parameter replaced by `--name value`."""

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in FLAGS:
            return match[0]
        return f"`{FLAGS[name]}`" if value == "True" else f"`{FLAGS[name]} {value}`"

    return _VALUE.sub(flag, text)


def about_parameters(text: str) -> str:
    """Return a text with bare names of parameters replaced, too; only for texts that name nothing else in backticks."""
    return _NAME.sub(lambda match: f"`{FLAGS[match[1]]}`" if match[1] in FLAGS else match[0], with_flags(text))


def shortened(text: str) -> str:
    """Return a text in which long words, such as names from files, are cut in the middle."""
    return _LONG.sub(lambda match: f"{match[0][:_SHOWN]}…{match[0][-_SHOWN:]}", text)
