"""A plug-in of pytest that adds the recipes of `docs/architecture.md` to lrzip, as their reader would.

A recipe is a Python block whose first line is a comment. `# lrzip/ranks/share.py` is a new file, `# path.py: NAME` are
new entries of a mapping in an existing file. A file without a folder belongs to the user, not to lrzip.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from lrzip.core.registry import Registry
from tests.support.pages import blocks_of

PAGE = "docs/architecture.md"
_HEAD = re.compile(r"# ([\w/]+)\.py(?:: (\w+))?\n")


@dataclass(frozen=True)
class Recipe:
    """One block: the dotted name of a module, the mapping that it extends if there is one, and the code."""

    module: str
    mapping: str | None
    code: str

    def apply(self) -> None:
        """Create the module, or extend the mapping."""
        if self.mapping is None:
            parent, _, name = self.module.rpartition(".")
            module = sys.modules[self.module] = ModuleType(self.module)
            setattr(import_module(parent), name, module)
            exec(compile(self.code, f"{PAGE}: {self.module}", "exec"), module.__dict__)
            return
        mapping = getattr(import_module(self.module), self.mapping)
        entries = eval(f"{{{self.code}}}", {"tests": sys.modules["tests"]})
        (mapping._entries if isinstance(mapping, Registry) else mapping).update(entries)


def recipes() -> Sequence[Recipe]:
    """Return the recipes in the order of the page."""
    found = []
    for block in blocks_of(PAGE):
        if block.info == "python recipe":
            head = _HEAD.match(block.text)
            assert head, f"a recipe begins with the name of its file: {block.text}"
            found.append(Recipe(head[1].replace("/", ".").removesuffix(".__init__"), head[2], block.text))
    return found


def pytest_configure() -> None:
    """Apply the recipes before any test is collected."""
    for recipe in recipes():
        if "." in recipe.module:
            recipe.apply()
