"""Trained tensors replace those of a checkpoint, in its dtypes, and everything else is copied."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lrzip.core.plan import Plan
from lrzip.formats.open import open_checkpoint
from lrzip.formats.rewrite import write_state


def test_named_tensors_are_cast_and_all_others_copied(tmp_path: Path) -> None:
    before = {"module.a": torch.ones(2, 3, dtype=torch.bfloat16), "module.b": torch.arange(4)}
    save_file(before, tmp_path / "a.safetensors", metadata={"note": "kept"})
    trained = torch.tensor([[1 / 3] * 3] * 2)
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        layout = Plan((), (), "", "").layout(source.tensors())
        out = tmp_path / "b.safetensors"
        write_state(out, source, layout, {"module.a": trained}, format_="safetensors", drop=())
    after = load_file(out)
    assert after["module.a"].equal(trained.bfloat16())
    assert after["module.b"].equal(before["module.b"])
    with open_checkpoint(out) as written:
        assert written.metadata == {"note": "kept"}
