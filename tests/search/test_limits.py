"""A search tries only what its output can hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UnknownName
from lrzip.search.compress_within import compress_within
from tests.support.tasks import learning_of


class Words(nn.Module):
    """An embedding, which folders of transformers store dense, a convolution and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.fc = nn.Linear(24, 24)
        self.head = nn.Linear(24, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.embed(ids).mT).relu().mean(-1)
        return self.head(self.fc(x).relu())  # type: ignore[no-any-return]


def data() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 40, (200, 8), generator=torch.Generator().manual_seed(0))
    return ids, (ids[:, 0] > 19).long()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dense"
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(Words().state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "words"}))
    return path


def test_what_the_format_cannot_hold_is_never_tried(source: Path, tmp_path: Path) -> None:
    x, y = data()
    found = compress_within(source, tmp_path / "small", max_drop=100, model=Words(), learning=learning_of(x, y))
    assert found.trials
    assert all("embed" not in trial.ranks for trial in found.trials)
    assert found.best.ranks
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {f"{name}.weight_in" for name in found.best.ranks} <= stored.keys()
    reasons = {item.name: item.reason for item in found.report.plan.keep}
    assert "no low-rank module" in reasons["embed"]
    state = lrzip.load_into(Words(), tmp_path / "small").state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == found.best.parameters


def test_a_layer_that_cannot_be_stored_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    x, y = data()
    options: dict[str, Any] = {"max_drop": 100, "model": Words(), "learning": learning_of(x, y), "only": ["embed"]}
    with pytest.raises((UnknownName, LrzipError), match="no low-rank module"):
        compress_within(source, tmp_path / "small", **options)
    assert not (tmp_path / "small").exists()


def test_structures_that_the_format_cannot_hold_are_not_chosen(source: Path, tmp_path: Path) -> None:
    report = lrzip.compress(source, tmp_path / "auto", energy=0.5, decomposition="auto")
    assert {decision.decomposition for decision in report.plan.factorize} == {"svd"}
    assert "conv" in {decision.group.name for decision in report.plan.factorize}
    with pytest.raises(LrzipError, match="No selected layer can be replaced by `decomposition=tucker`"):
        lrzip.compress(source, tmp_path / "tucker", energy=0.5, decomposition="tucker", dry_run=True)
    held = lrzip.compress(source, tmp_path / "one.safetensors", energy=0.5, decomposition="tucker")
    assert "tucker" in {decision.decomposition for decision in held.plan.factorize}
