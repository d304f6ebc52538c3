"""Outputs are written completely, or an error says what to do."""

import errno
import os
from pathlib import Path

import pytest
import torch

from lrzip.core.errors import LrzipError
from lrzip.core.plan import Plan
from lrzip.formats.open import open_checkpoint
from lrzip.formats.write import create, rewrite
from tests.support.checkpoints import safetensors


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, r"No space left on device\. Free some space"), (errno.EIO, r"Input/output error\.$")],
)
def test_a_full_disk_is_an_error_with_advice(code: int, message: str, tmp_path: Path) -> None:
    with open_checkpoint(safetensors(tmp_path)) as source:
        layout = Plan((), (), "", "").layout(source.tensors())
        with (
            pytest.raises(LrzipError, match=message),
            create(tmp_path / "out.safetensors", source, layout, format_="safetensors"),
        ):
            raise OSError(code, os.strerror(code))
    assert not (tmp_path / "out.safetensors").exists()


def test_changed_tensors_replace_those_of_the_source(tmp_path: Path) -> None:
    changed = {"fc2.bias": torch.arange(12.0)}
    with open_checkpoint(safetensors(tmp_path)) as source:
        with rewrite(tmp_path / "out.safetensors", source, Plan((), (), "", ""), changed=changed):
            pass
        with open_checkpoint(tmp_path / "out.safetensors") as written:
            assert written.tensors() == source.tensors()
            differing = [name for name in written.tensors() if not written.read(name).equal(source.read(name))]
            assert differing == ["fc2.bias"]
            assert written.read("fc2.bias").equal(changed["fc2.bias"])
