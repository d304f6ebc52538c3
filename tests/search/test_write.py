from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lrzip
from tests.support.searches import accuracy, compress
from tests.support.tasks import Deep, TwoConvolutions, classes


def test_names_dtypes_and_formats_are_preserved(folder: Path) -> None:
    state = torch.load(folder / "dense.pt")["state_dict"]
    wrapped = {f"module.{name}": tensor.bfloat16() for name, tensor in state.items()}
    torch.save({"state_dict": wrapped}, folder / "dense.pt")
    compress(folder, "small.safetensors", skip=["fc1"], max_drop=10)
    small = load_file(folder / "small.safetensors")
    assert {tensor.dtype for tensor in small.values()} == {torch.bfloat16}
    assert "module.fc1.weight" in small
    assert {name.split(".")[0] for name in small} == {"module"}
    assert any(name.endswith(".0.weight") for name in small)
    x, y = classes()
    # The weights have 8 bits of precision; the search measured the same network in float32.
    assert accuracy(lrzip.load_into(Deep(), folder / "small.safetensors"), x[300:], y[300:]) > 0.8


@pytest.mark.parametrize("strategy", ["global", "adaptive", "energy"])
def test_every_decomposition_can_be_searched(strategy: str, convolutional: Path, tmp_path: Path) -> None:
    (tmp_path / "dense.pt").write_bytes((convolutional / "dense.pt").read_bytes())
    options: dict[str, Any] = {"model": TwoConvolutions(), "max_drop": 30, "options": {"decomposition": "tucker"}}
    found = compress(tmp_path, strategy=strategy, log=tmp_path / "log.jsonl", **options)
    decisions = {decision.layer.name: decision for decision in found.report.plan.factorize}
    assert {name: decision.ranks for name, decision in decisions.items()} == found.best.ranks
    assert len(found.best.ranks["conv2"]) == 2
    assert {name: decision.decomposition for name, decision in decisions.items()}["conv2"] == "tucker"
    if "fc" in decisions:
        assert decisions["fc"].decomposition == "svd"
    x, y = classes()
    model = lrzip.load_into(TwoConvolutions(), tmp_path / "small.pt")
    assert accuracy(model, x[300:], y[300:]) == pytest.approx(found.best.scores["accuracy"], abs=1e-6)
    assert sum(parameter.numel() for parameter in model.parameters()) == found.best.parameters
    document = found.to_dict()["search"]["tried"]
    assert any(isinstance(trial["ranks"].get("conv2"), list) for trial in document)
    again = compress(tmp_path, "again.pt", strategy=strategy, log=tmp_path / "log.jsonl", resume=True, **options)
    assert again.trials == [replace(trial, seconds=round(trial.seconds, 3)) for trial in found.trials]
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "small.pt").read_bytes()


def test_another_decomposition_is_another_search(convolutional: Path, tmp_path: Path) -> None:
    (tmp_path / "dense.pt").write_bytes((convolutional / "dense.pt").read_bytes())
    found = [
        compress(tmp_path, model=TwoConvolutions(), max_drop=100, options={"decomposition": name})
        for name in ("svd", "tucker")
    ]
    assert found[0].trials[0].key != found[1].trials[0].key
    assert [len(each.best.ranks["conv2"]) for each in found] == [1, 2]
