"""Plan files, from the document to the plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import LrzipError, PlanMismatch, UnknownName
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_plan_file_gives_the_output_of_its_rule(path: Path, tmp_path: Path) -> None:
    planned = lrzip.compress(path, tmp_path / "rule.pt", energy=0.7)
    (tmp_path / "plan.json").write_text(json.dumps(planned.plan.to_dict()))
    report = lrzip.compress(path, tmp_path / "plan.pt", plan=tmp_path / "plan.json")
    assert report.plan.factorize == planned.plan.factorize
    assert (tmp_path / "plan.pt").read_bytes() == (tmp_path / "rule.pt").read_bytes()


def edited(path: Path, tmp_path: Path, change: Any) -> Path:
    """Return a plan file of rank 4 after a change of its document."""
    document = lrzip.compress(path, rank=4, dry_run=True).plan.to_dict()
    change(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    return tmp_path / "plan.json"


def test_a_plan_can_be_edited(path: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["layers"][0]["ranks"] = [2]
        del document["layers"][1]

    report = lrzip.compress(path, plan=edited(path, tmp_path, change), dry_run=True)
    ranks = {decision.group.name: decision.ranks for decision in report.plan.factorize}
    assert ranks == {"conv1": (2,), "fc1": (4,), "fc2": (4,)}
    assert {keep.name: keep.reason for keep in report.plan.keep}["conv2"].startswith("not in `")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"][2].update(shape=[20, 99]), r"`fc1\.weight` is \(20, 99\) in the plan and \(20, 576\)"),
        (lambda d: d["layers"][2].update(tensor="fc9.weight"), r"it has no `fc9\.weight`"),
        (lambda d: d["layers"][2].update(ranks=[21]), r"ranks \[21\]; they go from 1 to \[20\]"),
        (lambda d: d["layers"][2].update(ranks=[0]), "must be a whole number from 1"),
        (lambda d: d["layers"][2].update(ranks=[4, 4]), "go from 1"),
        (lambda d: d["layers"][2].update(ranks=[20]), "save nothing. Go down to 19"),
        (lambda d: d["layers"][2].update(ranks=[4.0]), "whole number"),
        (lambda d: d["layers"][2].update(ranks=[True]), "whole number"),
        (lambda d: d["layers"][2].update(dtype="int8"), r"`layers\[2\]\.dtype` must be one of"),
        (lambda d: d["layers"][2].pop("ranks"), r"`layers\[2\]\.ranks` is missing"),
        (lambda d: d["layers"].append(d["layers"][0]), "a second time"),
        (lambda d: d["layers"].append(3), "must be an object"),
        (lambda d: d.update(schema=2), "not a plan of schema 1"),
        (lambda d: d.update(layers={}), "`layers` must be a list"),
        (lambda d: d["source"].update(fingerprint="sha256:0"), "that the plan keeps differ"),
        (
            lambda d: (d["source"].update(fingerprint="sha256:0"), d["kept"].append({"tensor": "gone.weight"})),
            r"it has no `gone\.weight`",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_first_mismatch(
    change: Any, message: str, path: Path, tmp_path: Path
) -> None:
    plan = edited(path, tmp_path, change)
    with pytest.raises(PlanMismatch, match=message):
        lrzip.compress(path, tmp_path / "b.pt", plan=plan)
    assert not (tmp_path / "b.pt").exists()


def test_a_plan_with_an_unknown_decomposition_is_refused(path: Path, tmp_path: Path) -> None:
    plan = edited(path, tmp_path, lambda d: d["layers"][0].update(decomposition="svdd"))
    with pytest.raises(
        UnknownName, match=r"plan.json` gives `\S+` to the unknown decomposition `svdd`\. Choose one of: svd"
    ):
        lrzip.compress(path, plan=plan, dry_run=True)


def test_a_plan_that_is_no_json_is_refused(path: Path, tmp_path: Path) -> None:
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(PlanMismatch, match=r"plan.json` (is not valid JSON|cannot be read)"):
            lrzip.compress(path, plan=tmp_path / "plan.json", dry_run=True)


def test_a_plan_does_not_bring_non_finite_weights_through(path: Path, tmp_path: Path) -> None:
    plan = edited(path, tmp_path, len)
    state = torch.load(path, weights_only=True)
    state["fc1.weight"][0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(LrzipError, match=r"`fc1` of `.*` contains NaN or Inf"):
        lrzip.compress(path, tmp_path / "b.pt", plan=plan)
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(16, 32, 3, groups=2), "a convolution in groups"),
        (nn.Linear(16, 32), "no convolution"),
        (nn.ConvTranspose2d(16, 32, 3), "no convolution"),
        (nn.Conv2d(16, 32, 1), "a convolution without a kernel"),
    ],
    ids=["groups", "linear", "transposed", "pointwise"],
)
def test_a_plan_cannot_give_a_layer_to_a_decomposition_that_refuses_it(
    module: nn.Module, reason: str, tmp_path: Path
) -> None:
    model = nn.Sequential(module)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    plan = lrzip.compress(tmp_path / "a.pt", rank=2, model=model, dry_run=True).plan.to_dict()
    plan["layers"][0] |= {"decomposition": "tucker", "ranks": [4, 4]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanMismatch, match=f"to tucker, which does not take it: {reason}"):
        lrzip.compress(tmp_path / "a.pt", plan=tmp_path / "plan.json", model=model, dry_run=True)


def test_a_plan_may_name_another_decomposition(path: Path, tmp_path: Path) -> None:
    plan = edited(path, tmp_path, lambda d: d["layers"][0].update(decomposition="tucker", ranks=[4, 3]))
    decision = lrzip.compress(path, plan=plan, dry_run=True).plan.factorize[0]
    assert (decision.decomposition, decision.ranks) == ("tucker", (4, 3))


def test_a_kept_tensor_cannot_be_named(path: Path, tmp_path: Path) -> None:
    def name_a_bias(document: dict[str, Any]) -> None:
        document["layers"][0] |= {"tensor": "bn1.weight", "shape": [16]}

    tensors = torch.load(path, weights_only=True)
    torch.save(tensors | {"bn1.weight": torch.rand(16)}, path)
    with pytest.raises(PlanMismatch, match=r"names `bn1\.weight`, which is kept: a vector\. Take it out of the plan"):
        lrzip.compress(path, plan=edited(path, tmp_path, name_a_bias), dry_run=True)
