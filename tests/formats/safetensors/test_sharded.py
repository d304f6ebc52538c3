import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lrzip
from lrzip.core.errors import LrzipError, OutputExists, UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from lrzip.formats.safetensors.sharded import ShardedFolder
from tests.support.checkpoints import sharded

INDEX = "model.safetensors.index.json"


def edited(path: Path, **changes: str) -> Path:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"] |= changes
    (path / INDEX).write_text(json.dumps(index))
    return path


def test_the_output_has_a_shard_for_each_of_the_input_and_a_true_index(tmp_path: Path) -> None:
    source = sharded(tmp_path)
    lrzip.compress(source, tmp_path / "small", ratio=2)
    index = json.loads((tmp_path / "small" / INDEX).read_text())
    shards = {path.name: load_file(path) for path in (tmp_path / "small").glob("*.safetensors")}
    assert shards.keys() == {path.name for path in source.glob("*.safetensors")}
    assert index["weight_map"] == {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    assert index["metadata"] == {"total_size": total, "made_by": "test"}
    assert (tmp_path / "small" / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"
    assert (tmp_path / "small" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    for path in (tmp_path / "small").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_a_folder_with_one_file_needs_no_index(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"fc.weight": torch.rand(30, 30)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    lrzip.compress(folder, rank=2)
    assert {path.name for path in (tmp_path / "model.lrzip").iterdir()} == {"model.safetensors", "config.json"}


def test_a_folder_can_become_one_file(tmp_path: Path) -> None:
    source = sharded(tmp_path)
    lrzip.export(source, "safetensors", tmp_path / "one.safetensors")
    with open_checkpoint(source) as many, open_checkpoint(tmp_path / "one.safetensors") as one:
        assert many.tensors().keys() == one.tensors().keys()


def test_tensors_can_be_presented_under_other_names(tmp_path: Path) -> None:
    with ShardedFolder(sharded(tmp_path)) as folder:
        before = folder.read("fc1.weight")
        folder.rename({"fc1.weight": "other"})
        assert folder.tensors()["other"].name == "other"
        assert "fc1.weight" not in folder.tensors()
        assert folder.read("other").equal(before)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = edited(sharded(tmp_path), **{"more.weight": "model-00003-of-00003.safetensors"})
    with pytest.raises(
        UnsupportedCheckpoint, match=r"has no `model-00003-of-00003\.safetensors`, which its index names"
    ):
        open_checkpoint(path)


def test_a_tensor_that_no_shard_has_is_named(tmp_path: Path) -> None:
    path = edited(sharded(tmp_path), **{"more.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(UnsupportedCheckpoint, match=r"`more\.weight` is in `.*`, which has no such tensor"):
        open_checkpoint(path)


def test_folders_without_weights_or_with_unrelated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="holds no safetensors weights"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match="holds 2 safetensors files and no index"):
        open_checkpoint(tmp_path)


def test_an_existing_folder_is_replaced_only_by_force(tmp_path: Path) -> None:
    source, output = sharded(tmp_path), tmp_path / "small"
    output.mkdir()
    (output / "old.txt").write_text("old")
    with pytest.raises(OutputExists):
        lrzip.compress(source, output, ratio=2)
    lrzip.compress(source, output, ratio=2, force=True)
    assert not (output / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sharded", "small"]


def test_a_folder_that_contains_the_input_is_never_replaced(tmp_path: Path) -> None:
    source = sharded(tmp_path)
    with pytest.raises(OutputExists, match="contains the input"):
        lrzip.compress(source / "model-00001-of-00002.safetensors", source, ratio=2, force=True)
    assert source.is_dir()


def test_one_file_cannot_become_a_folder(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.rand(30, 30)}, tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "folder", rank=2)
    assert (tmp_path / "folder").is_file()  # without a suffix it is a file in the input's format
    with pytest.raises(LrzipError):
        lrzip.export(tmp_path / "a.pt", "dense", tmp_path / "x.safetensors")
