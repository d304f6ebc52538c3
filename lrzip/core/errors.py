"""Exceptions raised for users, and one-line renderings of exceptions raised by other libraries.

Each message states what is wrong, with the name and the value, and what to do about it.
"""

import re

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class LrzipError(Exception):
    """Base class of the errors that users can act on; the message is one line."""


class UsageError(LrzipError):
    """Invalid options, whatever the checkpoint contains."""


class UnsupportedCheckpoint(LrzipError):
    """A file that cannot be read as a checkpoint."""


class UntrustedFile(LrzipError):
    """A file that would execute code if it were fully deserialized."""


class NotCompared(LrzipError):
    """Outputs of two networks that cannot be compared."""


class LimitReached(LrzipError):
    """A computation in a process of its own that took too much memory or time, or crashed; a part of a sentence."""


class PlanMismatch(LrzipError):
    """A plan that does not fit its checkpoint."""


class UnknownName(LrzipError):
    """A name or pattern that matches no layer, tensor or registry entry."""


class OutputExists(LrzipError):
    """An output path that already exists."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return the message of an exception as a part of one line.

    Args:
        error: Any exception; without a message, the name of its type is returned.
        limit: Maximum number of characters.
    """
    return as_line(str(error), limit) or type(error).__name__


def typed_line(error: BaseException, limit: int = 160) -> str:
    """Return the type and the message of an exception, `Type: message`, as a part of one line.

    Args:
        error: Any exception; without a message, the name of its type is returned alone.
        limit: Maximum number of characters of the message.
    """
    name, message = type(error).__name__, as_line(str(error), limit)
    return f"{name}: {message}" if message else name


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return the first line of the message of an exception, for libraries that add lines of advice.

    Args:
        error: Any exception; without a message, the name of its type is returned.
        limit: Maximum number of characters.
    """
    return as_line(str(error).strip().partition("\n")[0], limit) or type(error).__name__


def as_line(text: str, limit: int = 160) -> str:
    """Return a text without ANSI escapes, unprintable characters, line breaks and a final period.

    Args:
        text: Any text.
        limit: Maximum number of characters.
    """
    printable = (char if char.isprintable() else " " for char in _ANSI.sub(" ", text))
    return " ".join("".join(printable).split())[:limit].rstrip(" .:")
