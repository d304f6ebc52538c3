import subprocess
import sys
from pathlib import Path

import pytest

import lrzip
from lrzip.cli.main import app
from tests.support.checkpoints import nested
from tests.support.shell import error_of, run, spawn

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.decode() == f"lrzip {lrzip.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = run(command, "--help").stdout.decode()
    assert f"Example: lrzip {command} " in text
    assert "CHECKPOINT" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_under_a_heading(command: str) -> None:
    before, _, rest = run(command, "--help").stdout.decode().partition("\nHelp:\n")
    assert [line.split()[:2] for line in rest.splitlines() if line.startswith("  -")] == [["-h,", "--help"]]
    headings = [line for line in before.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[0] == "Arguments:"
    assert {"Output:", "Network and file:"} <= set(headings)
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compress", "--help"]])
def test_help_imports_neither_torch_nor_numpy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['lrzip', *{arguments}]\n"
        "from lrzip.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'numpy', 'safetensors', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, lrzip; lrzip.__version__; assert not {'torch', 'typer', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        _ = lrzip.decompress


def test_no_command_shows_the_help() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize("options", [[], ["--json", "--spectrum"]])
def test_a_reader_that_has_gone_ends_the_process_as_sigpipe_would(options: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        spawn("analyze", nested(tmp_path), *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141
    process.stderr.close()


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrzip.api.analyze.analyze", interrupted)
    assert error_of(run("analyze", "net.pt"), 130) == "lrzip: Interrupted; nothing was written.\n"


@pytest.mark.parametrize("threads", ["0", "100000", "2147483648"])
def test_numbers_of_threads_that_no_machine_has_are_usage_errors(threads: str) -> None:
    assert "--threads" in error_of(run("analyze", "net.pt", "--threads", threads), 2)
