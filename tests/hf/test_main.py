"""`python -m lrzip.hf COMMAND` runs commands in which compressed folders load."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", "4.50", reason="needs transformers 4.50 or later")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lrzip.hf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_a_module_runs_with_the_quantizer_registered(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text(
        "import sys\nfrom transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "print('lrzip' in AUTO_QUANTIZER_MAPPING, __name__, sys.argv[1:])"
    )
    done = run("tool", "export", "--to", "x", cwd=tmp_path)
    assert done.stdout == "True __main__ ['export', '--to', 'x']\n", done.stderr


def test_console_scripts_run_and_return_their_code(tmp_path: Path) -> None:
    done = run("lrzip", "analyze", "nothing.pt", cwd=tmp_path)
    assert done.returncode == 1
    assert "`nothing.pt` does not exist" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("no-such-command",), ("no_such_module",)])
def test_anything_else_is_refused_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
