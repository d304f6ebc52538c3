import json
from pathlib import Path
from typing import Any

import pytest

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from lrzip.formats.safetensors.index import Index
from tests.support.checkpoints import sharded
from tests.support.damage import damaged

NAME = "model.safetensors.index.json"
VALID: dict[str, Any] = {"metadata": {"total_size": 3}, "weight_map": {"a.weight": "x.safetensors"}, "more": [1]}


def read(folder: Path, text: str) -> Index:
    (folder / NAME).write_text(text)
    return Index.read(folder / NAME)


def test_a_damaged_index_is_read_or_refused_by_name(tmp_path: Path) -> None:
    for what, document in damaged(VALID):
        try:
            index = read(tmp_path, json.dumps(document))
        except UnsupportedCheckpoint as error:
            assert NAME in str(error), what
            assert "\n" not in str(error), what
        else:
            assert all(Path(name).name == name for name in index.shards), what
            assert json.loads(index.rewritten((), {}))["metadata"]["total_size"] == 0, what


def test_a_truncated_index_is_refused(tmp_path: Path) -> None:
    text = json.dumps(VALID)
    for length in range(len(text)):
        with pytest.raises(UnsupportedCheckpoint, match=NAME):
            read(tmp_path, text[:length])


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".", "..", "a\\b", ""])
def test_an_index_cannot_point_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"`weight_map\['a\.weight'\]` must be a file of its own folder"):
        read(tmp_path, json.dumps({"weight_map": {"a.weight": name}}))


@pytest.mark.parametrize("value", [[1], "x", 3, True])
def test_metadata_of_another_type_are_refused_with_their_value(value: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"index\.json`: `metadata` must be an object, got"):
        read(tmp_path, json.dumps(VALID | {"metadata": value}))


def test_a_tensor_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"names `a\.weight` more than once"):
        read(tmp_path, '{"weight_map": {"a.weight": "x.safetensors", "a.weight": "y.safetensors"}}')


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    first, second = sorted(path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    index = json.loads((path / NAME).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file == first.name}
    index["weight_map"][next(iter(index["weight_map"]))] = second.name
    (path / NAME).write_text(json.dumps(index))
    with pytest.raises(UnsupportedCheckpoint, match="tensors in more than one shard"):
        open_checkpoint(path)
