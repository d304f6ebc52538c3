import pytest

from lrzip.core.errors import as_line, first_line, one_line, typed_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("CUDA is\n\n  not\tthere.", "CUDA is not there"),
        ("\x1b[31mred\x1b[0m and \x1b[1;4mbold", "red and bold"),
        ("a\x00b\x07c\x9bd\u202ee", "a b c d e"),
        ("  the reason is:  ", "the reason is"),
        ("ends in three dots...", "ends in three dots"),
    ],
)
def test_a_message_becomes_one_plain_line_without_final_period(message: str, line: str) -> None:
    assert one_line(RuntimeError(message)) == line
    assert typed_line(RuntimeError(message)) == f"RuntimeError: {line}"


@pytest.mark.parametrize("message", ["", "\n", " . "])
def test_without_a_message_the_type_is_named_once(message: str) -> None:
    assert one_line(EOFError(message)) == typed_line(EOFError(message)) == "EOFError"


def test_lines_of_advice_are_left_out() -> None:
    assert (
        first_line(RuntimeError("\nCUDA error: out of range.\nCompile with debug symbols."))
        == "CUDA error: out of range"
    )
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("x" * 500), 7) == "x" * 7


def test_long_messages_are_cut_at_the_limit() -> None:
    assert one_line(ValueError("x" * 500)) == "x" * 160
    assert one_line(ValueError("x" * 500), 7) == "x" * 7
    assert as_line("word " * 4, 10) == "word word"
