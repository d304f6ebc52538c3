"""A path that does not exist is refused, with advice if it is the name of a model on the hub."""

from pathlib import Path

import pytest

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint


@pytest.mark.parametrize("name", ["google/bert_uncased", "Qwen/Qwen2.5-0.5B", "a/b-v1.1"])
def test_a_name_of_the_hub_is_explained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=f"hf download {name} --local-dir {name.partition('/')[2]}"):
        open_checkpoint(Path(name))


@pytest.mark.parametrize("name", ["model.pt", "nets/model.safetensors", "here/model", "a/b/c", "/models/bert"])
def test_a_path_that_does_not_exist_is_no_name_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UnsupportedCheckpoint, match=r"does not exist\. Check the name\."):
        open_checkpoint(Path(name))


def test_a_name_of_the_hub_is_explained_before_its_output_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in (lambda: lrzip.compress("org/name", rank=2), lambda: lrzip.export("org/name", "safetensors")):
        with pytest.raises(UnsupportedCheckpoint, match="hf download org/name"):
            verb()
