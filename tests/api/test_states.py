"""Every function works with networks whose state holds more than tensors, or says in one line why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import LrzipError
from tests.support.networks import WithState, seeded


def saved(folder: Path) -> Path:
    model = seeded(WithState)
    assert isinstance(model, WithState)
    model.scale.version = {"v": 7}
    torch.save(model.state_dict(), folder / "a.pt")
    return folder / "a.pt"


def test_states_that_are_no_tensors_pass_through_every_function(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert len(lrzip.analyze(path, model=WithState()).layers) == 2
    lrzip.compress(path, tmp_path / "b.pt", ratio=2, model=WithState())
    assert torch.load(tmp_path / "b.pt")["scale._extra_state"] == {"v": 7}
    loaded: Any = lrzip.load_into(WithState(), tmp_path / "b.pt")
    assert loaded.scale.version == {"v": 7}
    factorized: Any = lrzip.factorize(loaded, energy=0.9)
    assert factorized.scale.version == {"v": 7}
    made = lrzip.export(tmp_path / "b.pt", "pt2", tmp_path / "c.pt2", model=WithState(), input_shapes=["1,24"])
    assert made.differences
    lrzip.export(tmp_path / "b.pt", "dense", tmp_path / "d.pt", model=WithState())
    assert torch.load(tmp_path / "d.pt").keys() == torch.load(path).keys()
    report = lrzip.compress(path, tmp_path / "e.safetensors", ratio=2, model=WithState())
    assert dict(report.dropped) == {"scale._extra_state": "safetensors holds tensors only"}
    own: Any = lrzip.load_into(WithState(), tmp_path / "e.safetensors")
    assert own.scale.version == {"v": 3}


def test_lazy_networks_are_refused_in_one_line(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.LazyLinear(4))
    for act in (
        lambda: lrzip.factorize(model, ratio=2),
        lambda: lrzip.load_into(model, saved(tmp_path)),
        lambda: lrzip.analyze(saved(tmp_path), model=model),
        lambda: lrzip.compress(saved(tmp_path), ratio=2, model=model),
    ):
        with pytest.raises(LrzipError, match=r"`1\.weight` has no shape before the network has run"):
            act()


def test_entries_are_compressed_together_and_all_others_are_copied(tmp_path: Path) -> None:
    nets = {name: nn.Linear(24, size).state_dict() for name, size in (("netG", 24), ("netD", 36))}
    torch.save({"epoch": 3, **nets, "optimizer": {"state": {}}}, tmp_path / "a.pt")
    one = lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=2)
    assert one.to_dict()["entry"] == {"key": "netD", "others": ["netG"]}
    both = lrzip.compress(tmp_path / "a.pt", tmp_path / "c.pt", rank=2, key=["netG", "netD"])
    assert both.to_dict()["entry"] == {"key": "netG, netD", "others": []}
    result = torch.load(tmp_path / "c.pt")
    assert list(result) == ["epoch", "netG", "netD"]
    assert all(list(result[name]) == ["0.weight", "1.weight", "1.bias"] for name in nets)
    lrzip.compress(tmp_path / "a.pt", tmp_path / "d.safetensors", rank=2, key=["netG", "netD"])
    assert "netG.0.weight" in lrzip.analyze(tmp_path / "d.safetensors").to_dict()["kept"][0]["tensor"]
