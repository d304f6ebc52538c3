"""Processes whose standard streams are closed."""

import io
import os
import subprocess
from pathlib import Path

import pytest

from lrzip.cli.streams import is_closed
from tests.support.checkpoints import nested
from tests.support.shell import spawn


def start(redirection: str, *arguments: str | Path, stdin: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Return a process that a shell starts with a stream closed by a redirection."""
    command = f"{' '.join(map(str, spawn(*arguments)))} {redirection}"
    with (stdin or Path(os.devnull)).open("rb") as file:
        return subprocess.run(command, shell=True, stdin=file, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_file_is_written_whichever_streams_are_closed(redirection: str, tmp_path: Path) -> None:
    path = nested(tmp_path)
    plain, output = tmp_path / "plain.pt", tmp_path / "small.pt"
    assert start("", "compress", path, "--rank", "2", "-o", plain).returncode == 0
    done = start(redirection, "compress", path, "--rank", "2", "-o", output)
    assert (done.returncode, done.stderr) == (0, b"")
    assert output.read_bytes() == plain.read_bytes()


def test_closed_standard_input_holds_no_checkpoint() -> None:
    done = start("<&-", "analyze")
    assert done.returncode == 2
    assert done.stderr == b"lrzip: No CHECKPOINT, and standard input is closed. Name a checkpoint file.\n"


def test_a_checkpoint_cannot_go_to_closed_standard_output(tmp_path: Path) -> None:
    done = start(">&-", "compress", "--rank", "2", stdin=nested(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(b"lrzip: The output goes to standard output, which is closed.")


def test_a_stream_is_closed_if_it_is_the_null_device_that_replaced_it() -> None:
    assert is_closed(None)
    assert not is_closed(io.StringIO())
    with Path(os.devnull).open("w") as null:
        assert is_closed(null)
