from pathlib import Path

import pytest
import torch

from lrzip.core.errors import LrzipError
from lrzip.training.cache import Cache, key_of, network_digest, samples_digest
from tests.support.networks import seeded
from tests.support.tasks import Classifier, classes, samples_of


def test_documents_outlive_the_process(tmp_path: Path) -> None:
    first = Cache(tmp_path / "r.jsonl")
    first.put("a", {"x": 1})
    first.put("b", {"x": 2})
    again = Cache(tmp_path / "r.jsonl")
    assert again.get("a") == {"key": "a", "x": 1}
    assert again.get("c") is None
    assert len(again) == 2


@pytest.mark.parametrize("left", range(1, 20))
def test_an_incomplete_last_line_is_lost_and_no_other(left: int, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for key in ("a", "b"):
        Cache(path).put(key, {"x": 1})
    line = path.read_text().splitlines(keepends=True)[0]
    path.write_text(line + line[:left].replace("a", "b"))
    cut = Cache(path)
    assert [cut.get(key) is not None for key in ("a", "b")] == [True, False]
    cut.put("b", {"x": 3})
    assert Cache(path).get("b") == {"key": "b", "x": 3}


@pytest.mark.parametrize("text", ["hello\n", "[1]\n", '{"x": 1}\n', '{"key": 1}\n'])
def test_files_with_other_content_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(LrzipError, match="holds no results of lrzip: see line 1"):
        Cache(tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == text


def test_folders_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "r"):
        with pytest.raises(LrzipError, match="cannot be read as results"):
            Cache(path)


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
