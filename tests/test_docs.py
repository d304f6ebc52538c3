"""The READMEs and the pages in `docs/` are true: their commands and examples run, their options and links exist."""

import ast
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main

import lrzip
from lrzip.cli.main import app
from tests.support.adapters import peft_folder
from tests.support.graphs import model, node, save, weight
from tests.support.pages import PAGES, ROOT, Command, blocks_of, inline_code_of, pipelines_of, prose_of
from tests.support.recipes import recipes
from tests.support.shell import run
from tests.test_imports import LEVELS

INFOS = {"sh", "sh needs-data", "python", "python recipe", "text", "json"}
"""Info strings of code blocks. Blocks marked `needs-data` are checked for valid options and not run."""
TOOLS = {"pip", "pytest", "ruff", "mypy"}
"""Programs that `.ci/run` runs, which this suite therefore does not. Samples are run by `test_samples.py`."""
COUNTS = {
    "README.md": (10, 1),
    "docs/architecture.md": (1, 0),
    "docs/benchmarks.md": (0, 0),
    "docs/cli.md": (0, 0),
    "docs/calibration.md": (2, 0),
    "docs/compression.md": (8, 0),
    "docs/finetuning.md": (2, 0),
    "docs/formats.md": (5, 0),
    "docs/testing.md": (2, 0),
    "docs/transformers.md": (2, 1),
    "samples/README.md": (2, 0),
}
"""By page, how many shell and Python blocks are run."""


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def blocks(page: str, info: str) -> Sequence[str]:
    return [block.text for block in blocks_of(page) if block.info == info]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that commands and examples name."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("materials")
    (folder / "samples").mkdir()
    source = (ROOT / "samples" / "digits.py").read_text(encoding="utf-8")
    network = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (folder / "nets.py").write_text(f"import torch\nfrom torch import Tensor, nn\n\n{ast.unparse(network)}\n")
    for name in ("samples/digits.pt", "model.pt"):
        shutil.copy(ROOT / "samples" / "digits.pt", folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "nets", raising=False)
        dense = lrzip.load_into(__import__("nets").Net(), folder / "model.pt").eval()
        del sys.modules["nets"]
    images = torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = dense(images).argmax(1)
    np.savez(folder / "images.npz", x=images[:128], y=labels[:128])
    np.savez(folder / "test.npz", x=images[128:], y=labels[128:])
    np.savez(folder / "inputs.npz", x=images[:64])

    nodes = [node("Flatten", "x", "flat"), node("Gemm", "flat layer.weight", transB=1)]
    low_rank = {"layer.weight": weight(48, 4) @ weight(4, 64)}
    save(model(nodes, {"x": ["batch", 1, 8, 8]}, {"y": 2}, low_rank), folder / "model.onnx")
    peft_folder(folder)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(dense, (images[:2],), dynamic_shapes=({0: batch},)), folder / "net.pt2")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    encoder = transformers.BertModel(config)
    for layer in (module for module in encoder.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.constant_(layer.weight, 0.1)  # of rank 1, so that every energy saves parameters
    encoder.save_pretrained(folder / "folder")
    return folder


@pytest.fixture
def workspace(materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the materials, in which `nets` can be imported."""
    folder = tmp_path / "workspace"
    shutil.copytree(materials, folder)
    for recipe in recipes():
        if "." not in recipe.module:
            (folder / f"{recipe.module}.py").write_text(recipe.code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    for module in ("nets", "scores"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return folder


def execute(pipeline: Sequence[Command], folder: Path) -> None:
    """Run a pipeline in this process; each program reads what the one before it has printed."""
    piped = b""
    for command in pipeline:
        if command.words[0] in TOOLS or command.words[1].startswith("samples/"):
            check(command)
            continue
        if command.words[:2] == ["python", "-c"]:
            with chdir(folder):
                exec(compile(command.words[2], "python -c", "exec"), {})
            continue
        assert command.words[0] == "lrzip", f"{command.words} is not run"
        stdin = (folder / command.stdin).read_bytes() if command.stdin else piped
        done = run(*command.words[1:], stdin=stdin, cwd=folder)
        assert done.returncode == 0, f"{shlex.join(command.words)}: {done.stderr.decode()}"
        piped = done.stdout
        if command.stdout:
            assert piped
            (folder / command.stdout).write_bytes(piped)


def check(command: Command) -> None:
    """Assert that a command that is not run names existing options, modules and files."""
    words = [word for word in command.words if not re.match(r"[A-Z_0-9]+=", word)]
    if "lrzip" in words:
        parse(words[words.index("lrzip") + 1 :])
    elif words[:2] == ["python", "-m"] and words[2].startswith(("tests.benchmarks.", "tests.campaigns.")):
        source = (ROOT / f"{words[2].replace('.', '/')}.py").read_text(encoding="utf-8")
        assert {f'"{word}"' for word in words if word.startswith("--") and f'"{word}"' not in source} == set()
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        assert {word for word in words if word.startswith("--")} <= sample_options()
    else:
        assert words[0] in TOOLS, f"nothing is known of {words}"
        paths = [word for word in words[1:] if "/" in word or word.endswith(".py")]
        assert [path for path in paths if not (ROOT / path).exists()] == []


def parse(arguments: Sequence[str]) -> None:
    """Parse the arguments of `lrzip`; an unknown command, option or value raises."""
    group = typer.main.get_command(app)
    name, *rest = arguments
    with group.make_context("lrzip", [name, "--help"], resilient_parsing=True) as parent:
        command = group.get_command(parent, name)  # type: ignore[attr-defined]
        assert command, f"`lrzip {name}` is no command"
        command.make_context(name, list(rest), parent=parent)


def test_pages_are_found_and_their_blocks_are_of_known_kinds() -> None:
    assert {block.info for page in PAGES for block in blocks_of(page)} <= INFOS
    counts = {page: (len(blocks(page, "sh")), len(blocks(page, "python"))) for page in PAGES}
    assert counts == COUNTS


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_shell_blocks_run(page: str, workspace: Path) -> None:
    pipelines = [pipeline for text in blocks(page, "sh") for pipeline in pipelines_of(text)]
    assert len(pipelines) >= len(blocks(page, "sh"))
    for pipeline in pipelines:
        execute(pipeline, workspace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page: str, workspace: Path) -> None:
    with chdir(workspace):
        for text in blocks(page, "python"):
            exec(compile(text, page, "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh needs-data")])
def test_blocks_that_need_data_name_existing_options(page: str) -> None:
    commands = [command for text in blocks(page, "sh needs-data") for line in pipelines_of(text) for command in line]
    assert commands
    for command in commands:
        check(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compress model.pt --enrgy 1", "--enrgy"),
        ("compress model.pt --energy x", "valid number"),
        ("decompress model.pt", "`lrzip decompress` is no command"),
    ],
)
def test_unknown_options_values_and_commands_are_found(arguments: str, message: str) -> None:
    with pytest.raises((typer.TyperException, AssertionError)) as caught:
        parse(arguments.split())
    assert message in getattr(caught.value, "message", str(caught.value))


def test_the_readme_has_the_commands_of_ci_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    first, second = (f"{text.strip()} || exit" for text in blocks("README.md", "sh")[:2])
    assert first in script
    assert second in script


def test_the_first_command_prints_the_table_of_the_readme(workspace: Path) -> None:
    *_, pipeline = pipelines_of(blocks("README.md", "sh")[0])
    done = run(*pipeline[0].words[1:], cwd=workspace)
    shown, expected = (
        [line.rstrip() for line in re.sub(r"in [\d.]+ s", "in … s", text).strip().splitlines()]
        for text in (done.stdout.decode(), blocks("README.md", "text")[0])
    )
    assert shown == expected


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_prose_exist(page: str) -> None:
    known = command_options() | (sample_options() if page.startswith("samples/") else set())
    options = {option for code in inline_code_of(page) for option in OPTION.findall(code)}
    assert options <= known


def test_every_command_stands_in_the_readme() -> None:
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(commands) >= 4
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert [command for command in commands if f"lrzip {command} " not in readme] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page}: {link}"


def test_files_in_code_spans_exist() -> None:
    spans = [code for page in PAGES for code in inline_code_of(page)]
    files = [code for code in spans if re.fullmatch(r"(lrzip|tests|samples)/[\w/]+\.py", code)]
    rooms = [code for code in spans if re.fullmatch(r"(core|linalg|formats|networks|pipeline)/[\w/]+\.py", code)]
    assert len(files) >= 5
    assert len(rooms) >= 5
    paths = [ROOT / file for file in files] + [ROOT / "lrzip" / room for room in rooms]
    assert [str(path) for path in paths if not path.exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    links = re.findall(r"\]\((docs/\w+\.md)", prose_of("README.md"))
    assert {page for page in PAGES if page.startswith("docs/")} == set(links)


def test_the_ladder_is_drawn_as_it_is() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", prose_of("docs/architecture.md"), re.MULTILINE)
    drawn = {int(level): set(re.findall(r"`(\w+)`", rooms)) for level, rooms in rows}
    assert drawn == dict(enumerate(LEVELS))


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    named = {name for names in re.findall(r"pip install [^`\n]*\[([\w,]+)\]", text) for name in names.split(",")}
    assert {"plot", "train", "onnx", "hf", "samples", "test"} == named
    assert named == project["optional-dependencies"].keys()


@cache
def command_options() -> set[str]:
    """Return all options of all commands of `lrzip`."""
    commands: Mapping[str, object] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {option for name in commands for option in OPTION.findall(run(name, "--help").stdout.decode())}


@cache
def sample_options() -> set[str]:
    """Return all options of the scripts in `samples/`."""
    scripts = (ROOT / "samples").rglob("*.py")
    return {option for path in scripts for option in OPTION.findall(path.read_text(encoding="utf-8"))}


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
