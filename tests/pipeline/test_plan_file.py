import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lrzip
from lrzip.core.errors import PlanMismatch
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Return a plan file of rank 4, after editing the document."""
    document = lrzip.compress(path, rank=4, dry_run=True).plan.to_dict()
    edit(document)
    (path.parent / "plan.json").write_text(json.dumps(document))
    return path.parent / "plan.json"


def test_a_plan_is_followed_to_the_byte(path: Path, tmp_path: Path) -> None:
    lrzip.compress(path, tmp_path / "a.pt", rank=4)
    lrzip.compress(path, tmp_path / "b.pt", plan=edited(path, lambda _: None))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_layers_that_are_taken_out_stay_dense(path: Path) -> None:
    plan = edited(path, lambda document: document["layers"].pop(0))
    report = lrzip.compress(path, plan=plan, dry_run=True)
    assert [decision.group.name for decision in report.plan.factorize] == ["conv2", "fc1", "fc2"]
    assert {keep.name: keep.reason for keep in report.plan.keep}["conv1"] == f"not in `{plan}`"


def test_ranks_that_save_nothing_are_taken_only_if_forced(path: Path) -> None:
    def full(document: dict[str, Any]) -> None:
        document["layers"][2]["ranks"] = [min(document["layers"][2]["shape"])]

    with pytest.raises(PlanMismatch, match=r"gives `fc1` ranks \[\d+\], which save nothing\. Go down to \d+"):
        lrzip.compress(path, plan=edited(path, full), dry_run=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [0]}, r"gives `conv1` ranks \[0\]; they go from 1 to \[\d+\]"),
        ({"ranks": [4, 4]}, r"gives `conv1` ranks \[4, 4\]"),
        ({"decomposition": "tucker", "ranks": [4, 3]}, None),
        ({"shape": [1, 2]}, "does not fit .* in the plan and .* in the checkpoint. Make a new plan with"),
        ({"tensor": "nothing.weight"}, "does not fit .*: it has no `nothing.weight`"),
    ],
)
def test_a_plan_must_fit_its_checkpoint(change: dict[str, Any], message: str | None, path: Path) -> None:
    plan = edited(path, lambda document: document["layers"][0].update(change))
    if message is None:
        assert lrzip.compress(path, plan=plan, dry_run=True).plan.factorize[0].ranks == (4, 3)
        return
    with pytest.raises(PlanMismatch, match=message):
        lrzip.compress(path, plan=plan, dry_run=True)


def test_a_decomposition_may_refuse_a_layer(path: Path) -> None:
    plan = edited(path, lambda document: document["layers"][2].update({"decomposition": "tucker"}))
    with pytest.raises(PlanMismatch, match=r"gives `fc1` to tucker, which does not take it: .* Write `svd` there"):
        lrzip.compress(path, plan=plan, dry_run=True)


def test_a_kept_tensor_cannot_be_named(path: Path) -> None:
    def name_a_bias(document: dict[str, Any]) -> None:
        document["layers"][0] |= {"tensor": "bn1.weight", "shape": [16]}

    tensors = torch.load(path, weights_only=True)
    torch.save(tensors | {"bn1.weight": torch.rand(16)}, path)
    with pytest.raises(PlanMismatch, match=r"names `bn1\.weight`, which is kept: a vector\. Take it out of the plan"):
        lrzip.compress(path, plan=edited(path, name_a_bias), dry_run=True)
