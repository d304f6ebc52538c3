import io
import sys

import pytest
from rich.console import Console

from lrzip.cli.console import (
    costs_text,
    layer_progress,
    print_kept,
    print_table,
    printable,
    result_stream,
    shape_text,
    size_text,
)
from lrzip.core.costs import Costs, Latency
from lrzip.core.layers import Keep, TensorSpec
from lrzip.core.progress import silent


def kept(name: str, reason: str) -> Keep:
    return Keep(name, TensorSpec(f"{name}.weight", (3,), "float32", 12), reason)


def printed(keep: list[Keep]) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    print_kept(console, keep)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_kept_tensors_are_grouped_by_reason() -> None:
    keep = [kept("a", "x"), kept("b", "y"), kept("c", "x"), kept("d", "a vector"), kept("e", "a vector")]
    assert printed(keep) == ["", "Left unchanged", "  a, c: x", "  b: y", "  2 vectors"]
    assert printed([]) == []


def test_long_groups_are_counted_and_never_wrapped() -> None:
    lines = printed([kept(f"layer{index}", "it is large") for index in range(12)])
    assert lines[2].endswith("layer7, … 4 more: it is large")
    assert len(lines) == 3


def test_texts_of_files_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2J\n\tb\u202e") == "a�[2J b�"


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes_have_decimal_units(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text
    assert shape_text([64, 3, 3]) == "64×3×3"


def test_costs_are_counts_and_times_if_measured() -> None:
    costs = Costs(2000, 1000, {}, None)
    assert costs_text(costs) == "2,000 → 1,000 multiply-accumulates (2.00 times fewer)"
    timed = Costs(2000, 1000, {}, Latency(0.002, 0.001))
    assert costs_text(timed).endswith(", 2.00 → 1.00 ms a run here (2.00 times faster)")


def test_reports_go_to_standard_error_if_the_checkpoint_goes_to_standard_output() -> None:
    assert result_stream(to_stdout=True) is sys.stderr
    assert result_stream(to_stdout=False) is sys.stdout


def test_nothing_is_drawn_without_a_terminal() -> None:
    with layer_progress(quiet=False) as progress:
        assert progress is silent


COLUMNS = ["layer", "shape", "rank", "condition", "effective rank", "spectral norm", "decay"]
ROWS = [["encoder.layers.0.attention.query", "768×768", "768", "1.2e+05", "700", "31.4159", "-0.01"]]


def test_a_name_wider_than_the_terminal_is_folded_and_hides_no_column() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    name = "block." * 60 + "weight"
    print_table(console, COLUMNS[:3], [[name, "768×768", "768"]], expendable=COLUMNS[1:3])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 60
    assert "768×768" in lines[1]
    assert "".join(line[:30].strip() for line in lines[1:]) == name


def table_at(width: int) -> list[str]:
    """Return the lines of a table of 32 + 7 columns of text, whose last four columns may be hidden, last one first."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(console, COLUMNS, ROWS, expendable=COLUMNS[:2:-1])
    assert console.width == width
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_narrow_terminal_hides_columns_and_never_breaks_a_cell(width: int) -> None:
    heading, row, *rest = table_at(width)
    shown = [name for name in COLUMNS if name in heading]
    assert all(cell in row for cell, name in zip(ROWS[0], COLUMNS, strict=True) if name in shown)
    hidden = COLUMNS[len(shown) :]
    assert rest == ([f"Hidden for lack of width: {', '.join(hidden)}"] if hidden else [])
    assert len(row) <= width or shown == COLUMNS[:3]
    assert (hidden == []) == (width >= 100)
