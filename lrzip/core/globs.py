"""Match names of layers and modules with patterns."""

from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a full name, in the style of `fnmatch`.

    A full name always matches itself, even where it contains brackets, which are special in patterns.
    """
    return name == pattern or fnmatchcase(name, pattern)
