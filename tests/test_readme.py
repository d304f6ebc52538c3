"""The README says what is so."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import lrzip
from tests.support.shell import run

ROOT = Path(lrzip.__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [text.strip() for kind, text in BLOCKS if kind == "sh"]


def test_ci_runs_the_two_commands_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert SHELL[0] in script
    assert SHELL[1] in script


def test_the_first_command_prints_the_table_below_it(tmp_path: Path) -> None:
    command = SHELL[0].split(" && ")[1]
    assert command.startswith("lrzip compress samples/digits.pt")
    places = {"samples/digits.pt": ROOT / "samples" / "digits.pt", "small.pt": tmp_path / "small.pt"}
    done = run(*(places.get(word, word) for word in shlex.split(command)[1:]))
    shown = re.sub(r"in [\d.]+ s", "in … s", done.stdout.decode().replace(str(tmp_path) + "/", ""))
    expected = next(text for kind, text in BLOCKS if kind == "text")
    assert [line.rstrip() for line in shown.strip().splitlines()] == [
        line.rstrip() for line in re.sub(r"in [\d.]+ s", "in … s", expected).strip().splitlines()
    ]


def test_the_commands_do_what_they_say(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.rand(40, 3, 3, 3), "conv2.weight": torch.rand(40, 40, 3, 3)}
    torch.save(state, tmp_path / "model.pt")
    commands = [line.split("#")[0].strip() for line in SHELL[2].splitlines()]
    assert len(commands) == 5
    for command in commands[:4]:
        done = run(*shlex.split(command)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.lrzip.pt", "dense.pt", "small.safetensors"}


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "samples"))
    pytest.importorskip("sklearn")
    digits = importlib.import_module("digits")

    code = next(text for kind, text in BLOCKS if kind == "python")
    code = code.replace("samples/", f"{ROOT}/samples/").replace("small.pt", f"{tmp_path}/small.pt")
    scope: dict[str, object] = {"Net": digits.Net}
    exec(compile(code, "README.md", "exec"), scope)
    assert isinstance(scope["model"], digits.Net)


def test_every_option_of_compress_in_the_readme_exists() -> None:
    helped = "".join(
        run(command, "--help").stdout.decode() for command in ("analyze", "compress", "export", "finetune")
    )
    options = set(re.findall(r"`?(--[a-z][a-z-]+)", README)) - {"--check", "--nproc-per-node"}
    assert options
    assert {option for option in options if option not in helped} == set()
