"""Paths are opened by the format that matches, or refused."""

from pathlib import Path

import pytest

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from tests.support.checkpoints import nested


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="does not exist"):
        open_checkpoint(tmp_path / "missing.pt")


def test_a_path_that_no_format_matches_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    with pytest.raises(UnsupportedCheckpoint, match="is not a checkpoint that lrzip knows"):
        open_checkpoint(tmp_path / "notes")


def test_a_key_selects_an_entry(tmp_path: Path) -> None:
    with open_checkpoint(nested(tmp_path), key="state_dict") as checkpoint:
        assert checkpoint.key == "state_dict"
    with pytest.raises(UnsupportedCheckpoint, match="no entry `optimizer`"):
        open_checkpoint(tmp_path / "nested.ckpt", key="optimizer")
