"""The ladder of imports: a module imports from strictly lower rows, or along the order within its own."""

import ast
from pathlib import Path

import pytest

import lrzip

ROOT = Path(lrzip.__file__).parent
LADDER = [
    ["errors"],
    [
        "registry",
        "memory",
        "allocation",
        "linalg.gram",
        "linalg.scaling",
        "linalg.sketches",
        "linalg.rangefinder",
        "linalg.direct",
        "linalg.adaptive",
        "linalg.interpolative",
        "linalg.hermitian",
        "linalg.single_pass",
        "linalg.estimate",
        "linalg.certificate",
        "linalg.lanczos",
        "linalg.cost",
        "linalg.subspace",
        "linalg.sketched",
        "linalg.svd",
        "linalg.vbmf",
        "linalg.tucker",
        "linalg.whitening",
        "layers",
        "attention",
        "modules",
    ],
    ["measured", "patches", "moments", "operators", "spectrum", "objectives", "factors", "plan", "report", "progress"],
    [
        "timing",
        "files.archive",
        "files.inert",
        "files.raw",
        "files.atomic",
        "files.stream",
        "inference",
        "surgery",
        "models",
        "inputs",
        "programs",
        "runs",
        "retraining",
        "taps",
        "selection",
        "parallel",
        "scratch",
    ],
    ["data"],
    ["training"],
    ["formats", "decompositions", "ranks"],
    ["planning", "loading", "study", "tracing", "costs", "hf", "results", "evaluation", "rewriting"],
    ["calibration", "reconstruction"],
    ["choices", "work", "guided"],
    [
        "analysis",
        "compression",
        "curves",
        "exporting",
        "finetuning",
        "live",
        "networks",
        "sensitivity",
        "probing",
        "strategies",
        "bounded",
    ],
    ["drawing", "page"],
    ["cli"],
]
ROWS = {name: (row, column) for row, names in enumerate(LADDER) for column, name in enumerate(names)}
MODULES = sorted(
    path for path in ROOT.rglob("*.py") if path.name != "__main__.py" and path.relative_to(ROOT) != Path("__init__.py")
)


def place(module: str) -> tuple[int, int] | None:
    """Return row and column of a module, by its own name or its package's."""
    parts = module.split(".")
    return next((ROWS[key] for key in (".".join(parts[:count]) for count in (2, 1)) if key in ROWS), None)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {module.removeprefix("lrzip.") for module in found if module.startswith("lrzip.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    here = place(name_of(path))
    if here is None:
        assert path.name == "__init__.py"  # a package without content of its own
        assert not imports(path)
        return
    for module in imports(path):
        there = place(module)
        same_package = module.split(".")[0] == name_of(path).split(".")[0]
        assert there is not None, module
        assert there < here or same_package, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("package", ["decompositions", "ranks"])
def test_plug_ins_never_import_each_other(package: str) -> None:
    for path in (ROOT / package).glob("*.py"):
        others = {module for module in imports(path) if module.startswith(f"{package}.")}
        assert not others, f"{name_of(path)} imports {others}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    if name_of(path).startswith("cli"):
        return
    tree = ast.parse(path.read_text())
    names = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not names & {"typer", "rich"}
    assert "print" not in calls
