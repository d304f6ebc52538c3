"""The ladder of imports: rooms import from lower levels only, and nothing imports in a circle."""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lrzip

ROOT = Path(lrzip.__file__).parent
LEVELS = [
    {"linalg"},
    {"core"},
    {"decompositions", "ranks", "networks"},
    {"formats"},
    {"training", "hf"},
    {"calibration"},
    {"pipeline"},
    {"api"},
    {"search"},
    {"cli"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ENTRANCES = {"lrzip", "lrzip.__main__"}
"""The public names, each imported on first use, and `python -m lrzip`: they may import from anywhere."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES: Mapping[str, Path] = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
INSIDE = sorted(FILES.keys() - ENTRANCES)


def imports_of(source: str) -> set[str]:
    """Return the modules of lrzip that a source imports: at its head, within functions, and for type checking alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are banned"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & FILES.keys() or {node.module}
    return {name for name in found if name.split(".")[0] == "lrzip"}


GRAPH = {name: imports_of(FILES[name].read_text(encoding="utf-8")) for name in INSIDE}


def cycle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the names along a circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def subroom_of(module: str) -> str | None:
    """Return the folder within a room that a module is in, if it is in one."""
    _, *parts = name_of(FILES[module].parent / "x.py").split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else None


def test_every_kind_of_import_is_read() -> None:
    source = """
from typing import TYPE_CHECKING
import lrzip.core.plan
from lrzip.formats import FORMATS, open
if TYPE_CHECKING:
    from lrzip.cli.main import main
def lazy():
    import lrzip.api.compress as verb
"""
    expected = {"lrzip.core.plan", "lrzip.formats.open", "lrzip.cli.main", "lrzip.api.compress"}
    assert imports_of(source) == expected


def test_the_rooms_are_all_there_is() -> None:
    assert len(INSIDE) > 100
    assert {name.split(".")[1] for name in INSIDE} == set(LEVEL_OF)
    files = {"__init__.py", "__main__.py"}
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == files


@pytest.mark.parametrize("name", INSIDE)
def test_imports_go_down(name: str) -> None:
    room = name.split(".")[1]
    for module in GRAPH[name]:
        assert module != "lrzip", f"{name} imports the package that imports it"
        assert module in FILES, f"{name} imports {module}, which does not exist"
        other = module.split(".")[1]
        assert other == room or LEVEL_OF[other] < LEVEL_OF[room], f"{name} imports {module}, which is not below it"


def test_no_file_imports_itself_through_others() -> None:
    assert cycle_in(GRAPH) == []


def test_no_part_of_a_room_imports_itself_through_others() -> None:
    parts: dict[str, set[str]] = {}
    for name, modules in GRAPH.items():
        here = subroom_of(name)
        if here:
            parts.setdefault(here, set()).update(p for p in map(subroom_of, modules) if p and p != here)
    assert len(parts) >= 7
    assert cycle_in(parts) == []


def test_a_circle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})


@pytest.mark.parametrize("room", ["decompositions", "ranks"])
def test_plug_ins_never_import_each_other(room: str) -> None:
    registry = (ROOT / room / "__init__.py").read_text(encoding="utf-8")
    plugins = {name for name in INSIDE if name.startswith(f"lrzip.{room}.") and f'"{name}:' in registry}
    assert len(plugins) >= 2
    for name in plugins:
        assert not GRAPH[name] & (plugins - {name})


@pytest.mark.parametrize("name", [name for name in INSIDE if not name.startswith("lrzip.cli")])
def test_only_the_command_line_prints(name: str) -> None:
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    names = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not names & {"typer", "rich"}
    assert "print" not in calls
