"""Select layers by globs on their names, and find the rule of a layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from lrzip.core.errors import UnknownName
from lrzip.core.globs import matches
from lrzip.core.layers import Keep, Layer

Rule = TypeVar("Rule")


def select(
    found: Sequence[Layer | Keep], *, only: Sequence[str] = (), skip: Sequence[str] = (), named: Iterable[str] = ()
) -> Sequence[Layer | Keep]:
    """Return the items, with a `Keep` in place of each layer that is not selected.

    A pattern matches the full name, without wrapper prefixes, in the style of `fnmatch`; a full name matches itself,
    even with brackets in it. A full name in `only` or `named`, or a pattern in `only` that is more than wildcards, also
    overrides the reason to keep an ambiguous layer.

    Args:
        found: All items of a checkpoint.
        only: Patterns of layers to factorize; all layers if it is empty.
        skip: Patterns of layers to keep.
        named: Patterns of layers that have a rule of their own.

    Raises:
        UnknownName: A pattern matches nothing, or a full name names a tensor that cannot be factorized.
    """
    for name, patterns in (("only", only), ("skip", skip), ("layers", named)):
        for pattern in patterns:
            if not any(matches(item.name, pattern) for item in found):
                raise UnknownName(f"`{name}={pattern}` matches no layer. Names are: {_some_names(found)}.")
    return [_decide(item, only, skip, [*only, *named]) for item in found]


def rule_for(layer: Layer, rules: Mapping[str, Rule], default: Rule) -> Rule:
    """Return the rule of the last pattern that matches a layer, or the default."""
    matching = [rule for pattern, rule in rules.items() if matches(layer.name, pattern)]
    return matching[-1] if matching else default


def _decide(item: Layer | Keep, only: Sequence[str], skip: Sequence[str], named: Sequence[str]) -> Layer | Keep:
    if isinstance(item, Keep):
        is_named = item.name in named
        if is_named and item.override is None:
            raise UnknownName(f"`{item.name}` cannot be factorized: {item.reason}.")
        if item.override is None or not (is_named or any(_settles(pattern, item.name) for pattern in only)):
            return item
        item = item.override
    if only and not any(matches(item.name, pattern) for pattern in only):
        return Keep(item.name, item.weight, "not matched by `--only`")
    skipped = next((pattern for pattern in skip if matches(item.name, pattern)), None)
    return Keep(item.name, item.weight, f"matched `--skip {skipped}`") if skipped else item


def _settles(pattern: str, name: str) -> bool:
    """Return whether a pattern names an ambiguous layer: wildcards alone, as in `*`, name none in particular."""
    return bool(pattern.strip("*?.")) and matches(name, pattern)


def _some_names(found: Sequence[Layer | Keep]) -> str:
    names = [item.name for item in found if isinstance(item, Layer)] or [item.name for item in found]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
