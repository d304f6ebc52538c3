import io
import os
import sys
from pathlib import Path

import pytest

from lrzip.cli.files import checkpoint_path, goes_to_stdout, output_path
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"weights")))


@pytest.mark.parametrize(
    ("output", "checkpoint", "expected"),
    [
        (None, "a.pt", False),
        (None, "-", True),
        (None, None, True),
        ("-", "a.pt", True),
        ("/dev/stdout", "a.pt", True),
        ("b.pt", None, False),
    ],
)
def test_results_go_to_standard_output_where_checkpoints_came_from(
    output: str | None, checkpoint: str | None, expected: bool
) -> None:
    assert goes_to_stdout(Path(output) if output else None, checkpoint) == expected


@pytest.mark.usefixtures("stdin")
@pytest.mark.parametrize("checkpoint", [None, "-"])
def test_standard_input_is_a_file_for_as_long_as_it_is_needed(checkpoint: str | None) -> None:
    with checkpoint_path(checkpoint) as path:
        assert path.read_bytes() == b"weights"
    assert not path.exists()


@pytest.mark.usefixtures("stdin")
def test_errors_name_standard_input_and_keep_their_class() -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"^`standard input` is damaged$"), checkpoint_path("-") as path:
        raise UnsupportedCheckpoint(f"`{path}` is damaged")


def test_an_output_appears_on_standard_output_when_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    with output_path(None, to_stdout=True) as path:
        assert path
        path.write_bytes(b"small")
        assert out.buffer.getvalue() == b""
    assert out.buffer.getvalue() == b"small"


@pytest.mark.parametrize(("others", "message"), [(False, "A folder of shards"), (True, "A model with external data")])
def test_outputs_of_several_files_cannot_go_to_standard_output(
    others: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(LrzipError, match=message), output_path(None, to_stdout=True) as path:
        assert path
        (path.with_name("data") if others else path).mkdir()


def test_an_output_appears_in_a_pipe_when_it_is_complete(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with output_path(pipe, to_stdout=False) as path:
        assert path
        assert path.name == pipe.name  # its suffix selects the format
        path.write_bytes(b"small")
        assert os.read(reader, 9) == b""
    assert os.read(reader, 9) == b"small"
    os.close(reader)
    with output_path(Path("/dev/null"), to_stdout=False) as path:
        assert path
        path.write_bytes(b"small")
