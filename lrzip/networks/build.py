"""Import and build networks that users name as `pkg.mod:Net`."""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from lrzip.core.errors import LrzipError, UsageError, typed_line


def build(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Import and call a class or factory, and return the network in evaluation mode.

    Args:
        spec: Name of the form `pkg.mod:Net`; the working directory is searched too. Dots after the colon access
            attributes. If the name refers to a network instead of a class or factory, it is returned without a call.
        arguments: Keyword arguments of the call.

    Raises:
        UsageError: `spec` has no colon.
        LrzipError: The name cannot be imported or called, or the result is not an nn.Module.
    """
    factory = locate(spec, "model")
    if isinstance(factory, nn.Module):
        return factory.eval()
    if not callable(factory):
        raise LrzipError(f"`{spec}` is {type(factory).__name__}, not a class or function that returns a network.")
    try:
        made = factory(**(arguments or {}))
    except Exception as error:
        raise LrzipError(
            f"`{spec}` could not be built: {typed_line(error)}. Pass its arguments with `--model-arg NAME=VALUE`."
        ) from error
    if not isinstance(made, nn.Module):
        raise LrzipError(f"`{spec}` returned {type(made).__name__}, not an nn.Module.")
    return made.eval()


def locate(spec: str, parameter: str) -> Any:
    """Import the object that `pkg.mod:name` names, which executes the code of its module.

    Args:
        spec: Name; the working directory is searched too. Dots after the colon access attributes.
        parameter: Name of the parameter that received `spec`, for messages.

    Raises:
        UsageError: `spec` has no colon.
        LrzipError: There is no such module or attribute.
    """
    module_name, colon, path = spec.partition(":")
    if not (module_name and colon and path):
        raise UsageError(f"`{parameter}` takes `pkg.mod:Net`, a module and a class or function in it, got `{spec}`.")
    return _lookup(spec, _import(spec, module_name), path)


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Parse keyword arguments of the form NAME=VALUE.

    Args:
        texts: One string per argument; a value that is not valid JSON is a string.

    Raises:
        UsageError: A string is not of this form.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"`--model-arg` takes NAME=VALUE, such as `width=64`, got `{text}`.")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _import(spec: str, name: str) -> Any:
    with importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            if name == missing or name.startswith(f"{missing}."):
                raise LrzipError(
                    f"`{spec}` cannot be imported: there is no module `{missing}` here or among the installed packages."
                ) from error
            raise LrzipError(f"`{spec}` cannot be imported: it needs `{missing}`, which is not installed.") from error
        except Exception as error:
            raise LrzipError(f"`{spec}` cannot be imported: {typed_line(error)}.") from error


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the modules of a folder importable in the context."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _lookup(spec: str, module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), n=3)
            hint = f" Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            raise LrzipError(f"`{spec}`: `{getattr(found, '__name__', path)}` has no `{part}`.{hint}")
        found = getattr(found, part)
    return found
