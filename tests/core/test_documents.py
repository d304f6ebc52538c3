"""Readers of documents, with the messages that they give."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lrzip.core.documents import (
    Place,
    each,
    flag,
    mapping,
    number,
    one_of,
    optional,
    parse_json,
    read_json,
    record,
    shown,
    text,
    whole,
)
from lrzip.core.errors import LrzipError, PlanMismatch
from tests.support.damage import WRONG

PLACE = Place("`f.json`", "Write it again.", PlanMismatch)
DEEP: Any = []
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("reader", "accepted"),
    [
        (text, ["", "x", "7", "\ud800", "a\nb\x1b[31m"]),
        (flag, [True]),
        (one_of(("x", "y")), ["x"]),
        (whole(), [0, 7]),
        (whole(-1, 5), [-1, 0]),
        (number(), [-1, 0, 7, 1 << 80, 0.5, -1.5, 1e308]),
        (number(0), [0, 7, 1 << 80, 0.5, 1e308]),
        (optional(whole(1)), [None, 7]),
        (each(whole()), [[], [1]]),
        (each(whole(), least=1), [[1]]),
        (mapping(whole()), [{}, {"x": 1}]),
    ],
    ids=["text", "flag", "one_of", "whole", "bounded", "number", "least", "optional", "each", "some", "mapping"],
)
def test_a_reader_takes_its_kind_and_refuses_all_other_values(reader: Any, accepted: list[Any]) -> None:
    taken = []
    for value in (*WRONG, DEEP):
        try:
            reader(value, PLACE.at("field"))
        except PlanMismatch as error:
            message = str(error)
            assert re.match(r"`f\.json`: `field[^`]*` must be .*, got .*\. Write it again\.$", message)
            assert message.isprintable()
            assert len(message) < 300
        else:
            taken.append(value)
    assert list(map(repr, taken)) == list(map(repr, accepted))


def test_a_field_that_is_missing_is_named() -> None:
    found = record({"a": {"b c": [1, "x"]}}, PLACE)
    with pytest.raises(PlanMismatch, match=r"^`f\.json`: `z` is missing\. Write it again\.$"):
        found.read("z", text)
    assert found.find("z", text) is None
    with pytest.raises(PlanMismatch, match=r"`a\['b c'\]\[1\]` must be a whole number from 0 on, got 'x'\."):
        found.read("a", mapping(each(whole())))
    with pytest.raises(PlanMismatch, match=r"^`f\.json` must be an object, got a list of 1\."):
        record([1], PLACE)


def test_keys_that_are_not_strings_are_refused() -> None:
    with pytest.raises(PlanMismatch, match=r"`f\.json` must be a string, got 3\."):
        mapping(whole())({3: 4}, PLACE)


@pytest.mark.parametrize(
    ("value", "description"),
    [
        (None, "null"),
        (True, "true"),
        (DEEP, "a list of 1"),
        ({"x": 1}, "an object of 1"),
        (10**5000, "a number of 16610 bits"),
        (math.nan, "nan"),
        ("a\nb", r"'a\nb'"),
        ("x" * 999, "'" + "x" * 59),
        (object(), "an object of type object"),
    ],
    ids=["null", "true", "deep", "object", "huge", "nan", "lines", "long", "other"],
)
def test_values_are_described_in_one_short_line(value: object, description: str) -> None:
    assert shown(value) == description


TEXT = json.dumps({"a": [1, 2.5, "é", None, True], "b": {"c": [[]]}}, ensure_ascii=False)


@pytest.mark.parametrize("length", range(len(TEXT.encode())))
def test_a_text_cut_anywhere_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(TEXT.encode()[:length])
    with pytest.raises(LrzipError, match=re.escape(f"`{path}` ")) as caught:
        read_json(path, Place(f"`{path}`", "Write it again."))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize(("start", "end"), ["[]", ('{"a":', "}")])
def test_deeply_nested_texts_are_refused(start: str, end: str, depth: int) -> None:
    inner = "1" if start != "[" else ""
    assert parse_json(start * 90 + inner + end * 90, PLACE)
    with pytest.raises(PlanMismatch, match=r"`f\.json` is n.*\. Write it again\.$"):
        parse_json(start * depth + inner + end * depth, PLACE)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(LrzipError, match=re.escape(f"`{path}` cannot be read: ")):
            read_json(path, Place(f"`{path}`", "Write it again."))
