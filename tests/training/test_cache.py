from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.documents import Record, whole
from lrzip.core.errors import LrzipError
from lrzip.training.cache import Cache, key_of, network_digest, samples_digest
from tests.support.networks import seeded
from tests.support.tasks import Classifier, classes, samples_of

A, B, C = (key_of(letter) for letter in "abc")


def fields(document: Record) -> Mapping[str, Any]:
    return document.fields


def test_documents_outlive_the_process(tmp_path: Path) -> None:
    first = Cache(tmp_path / "r.jsonl")
    first.put(A, {"x": 1})
    first.put(B, {"x": 2})
    again = Cache(tmp_path / "r.jsonl")
    assert again.get(A, fields) == {"key": A, "x": 1}
    assert again.get(C, fields) is None
    assert len(again) == 2


@pytest.mark.parametrize("left", range(1, 44))
def test_an_incomplete_last_line_is_lost_and_no_other(left: int, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for key in (A, B):
        Cache(path).put(key, {"x": 1})
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:left])
    assert left < len(second)
    cut = Cache(path)
    assert [cut.get(key, fields) is not None for key in (A, B)] == [True, False]
    assert path.read_text() == first
    cut.put(B, {"x": 3})
    assert Cache(path).get(B, fields) == {"key": B, "x": 3}


FOREIGN = [
    *("hello", "[1]", '{"x": 1}', '{"key": 1}', '{"key": "secret"}', '{"key": "secret", "x": 1}', "\xff\xfe\x00"),
    *('{ "key": "0123456789abcdef01234567"}', '{"my": "precious configuration"}', '{"key": "abc', "{\n", " ", "{"),
    *('{"key": "x', "[" * 3000, '{"key": "0123456789abcdef01234567x"'),
]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\nx"])
@pytest.mark.parametrize("text", FOREIGN)
def test_files_with_other_content_are_refused_and_left_as_they_are(text: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text + end)
    before = path.read_bytes()
    if text == '{"key": "abc' and not end:  # a key that was cut
        return
    with pytest.raises(
        LrzipError, match=r"config\.json`: `line \d+` is no result of lrzip\. Give another name\."
    ) as caught:
        Cache(path)
    assert str(caught.value).isprintable()
    assert path.read_bytes() == before


@pytest.mark.parametrize("rest", ["[" * 3000, "{", '"x": NaN', "\xff"])
def test_damaged_lines_are_named(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(f'{{"key": "{A}", "y": {rest}\n'.encode("latin-1"))
    with pytest.raises(LrzipError, match=r"r\.jsonl`: `line 1` is not valid JSON"):
        Cache(path)


def test_a_document_that_its_reader_refuses_counts_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Cache(path).put(A, {"x": 1})
    assert Cache(path).get(A, lambda document: document.read("x", whole())) == 1
    assert Cache(path).get(A, lambda document: document.read("x", whole(2))) is None
    assert Cache(path).get(A, lambda document: document.read("y", whole())) is None


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LrzipError, match="cannot be read as results"):
        Cache(tmp_path)


def test_digests_differ_with_contents() -> None:
    model = seeded(Classifier)
    digest = network_digest(model)
    assert digest == network_digest(seeded(Classifier))
    with torch.no_grad():
        model.get_parameter("fc1.bias")[3] += 1e-3
    assert digest != network_digest(model)
    x, y = classes(40)
    assert samples_digest(samples_of(x, y)) == samples_digest(samples_of(x.clone(), y))
    assert samples_digest(samples_of(x, y)) != samples_digest(samples_of(x, y.flip(0)))
    assert key_of("a", {"b": 1, "c": 2}) == key_of("a", {"c": 2, "b": 1}) != key_of("a", {"b": 2, "c": 1})
