"""Exceptions of parsers become errors of one line that name the file."""

from pathlib import Path

import pytest

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile
from lrzip.formats.files.readable import readable


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("shape"), "`a.pt` is damaged or not a checkpoint: 'shape'."),
        (EOFError(), "`a.pt` is damaged or not a checkpoint: EOFError."),
        (ValueError("two\nlines\x1b[31m in red."), "`a.pt` is damaged or not a checkpoint: two lines in red."),
        (
            RuntimeError("Advice. WeightsUnpickler error: bad opcode"),
            "`a.pt` is damaged or not a checkpoint: bad opcode.",
        ),
        (FileNotFoundError(2, "No such file"), "`a.pt` cannot be read: No such file."),
    ],
)
def test_exceptions_of_parsers_name_the_file_in_one_line(error: Exception, message: str) -> None:
    with pytest.raises(UnsupportedCheckpoint) as caught, readable(Path("a.pt")):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [UntrustedFile("`a.pt` is pickled"), MemoryError(), KeyboardInterrupt()])
def test_errors_for_users_and_of_the_machine_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, readable(Path("a.pt")):
        raise error
    assert caught.value is error


def test_places_in_the_source_of_a_library_are_left_out() -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"checkpoint: not in a subdirectory\.$"), readable(Path("a.pt")):
        raise RuntimeError("[enforce fail at inline_container.cc:340] . not in a subdirectory")


def test_errors_for_users_are_preceded_by_the_file_if_they_do_not_name_it() -> None:
    with (
        pytest.raises(UntrustedFile, match=r"^`folder/a.pt`: `w` has a negative dimension.$"),
        readable(Path("folder/a.pt")),
    ):
        raise UntrustedFile("`w` has a negative dimension.")
    with pytest.raises(UntrustedFile, match=r"^`w` of `a.pt` is odd.$"), readable(Path("folder/a.pt")):
        raise UntrustedFile("`w` of `a.pt` is odd.")
