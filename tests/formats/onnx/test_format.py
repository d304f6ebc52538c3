"""ONNX models are recognized by their suffix or their first bytes."""

from pathlib import Path

import pytest

from lrzip.core.errors import LrzipError
from lrzip.formats.onnx.format import FORMAT
from lrzip.formats.open import open_checkpoint
from tests.support.checkpoints import safetensors
from tests.support.graphs import save, shared


@pytest.mark.parametrize("name", ["a.onnx", "a.ONNX", "a.model", "a"])
def test_models_are_recognized_by_suffix_or_content(name: str, tmp_path: Path) -> None:
    save(shared(), tmp_path / "model.onnx").rename(tmp_path / name)
    assert FORMAT.matches(tmp_path / name)
    assert FORMAT.files(tmp_path / name) == [tmp_path / name]


def test_other_files_and_folders_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x08hello")
    assert not FORMAT.matches(tmp_path / "a.txt")
    assert not FORMAT.matches(tmp_path)


def test_weights_cannot_be_written_as_a_model(tmp_path: Path) -> None:
    with (
        open_checkpoint(safetensors(tmp_path)) as source,
        pytest.raises(LrzipError, match="holds weights and no program"),
        FORMAT.write(tmp_path / "out.onnx", source, (), drop=()),
    ):
        pass
