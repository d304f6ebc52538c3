"""One safetensors file is read in the order of its data, and written with the metadata of its source."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.safetensors.file import FORMAT, SafetensorsFile


def test_a_file_is_recognized_by_its_suffix_or_its_header(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights")
    assert FORMAT.matches(tmp_path / "weights")
    (tmp_path / "broken.safetensors").write_bytes(b"")
    assert FORMAT.matches(tmp_path / "broken.safetensors")
    (tmp_path / "other").write_bytes(b"12345678[")
    assert not FORMAT.matches(tmp_path / "other")


def test_a_file_that_shrinks_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with SafetensorsFile(path) as file:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UnsupportedCheckpoint, match="became shorter while it was read"):
            file.read("a")
