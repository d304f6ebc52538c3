import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.formats.open import open_checkpoint
from lrzip.pipeline.subnormal_weights import SubnormalWeight, find_subnormal_weights, subnormal_note
from tests.support.shell import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint whose dead channels are subnormal, in a layer to factorize and in a depthwise convolution."""
    torch.manual_seed(0)
    net = network()
    with torch.no_grad():
        net.get_parameter("0.weight")[8:] *= 1e-38
        net.get_parameter("1.weight")[:8] *= 1e-38
        net.get_parameter("3.weight")[0, 0] = 1e-40
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_weights_with_many_subnormal_numbers_are_found_whether_they_are_factorized_or_not(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        found = find_subnormal_weights(checkpoint)
    assert found == [SubnormalWeight("0.weight", 24 * 144, 32 * 144), SubnormalWeight("1.weight", 72, 288)]
    assert [weight.to_dict() for weight in lrzip.analyze(path).subnormal] == [weight.to_dict() for weight in found]
    assert subnormal_note([]) is None


def test_tensors_that_cannot_be_read_are_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(path) as checkpoint:
        read = checkpoint.read

        def refuse(name: str) -> torch.Tensor:
            if name == "1.weight":
                raise LrzipError("It is pickled.")
            return read(name)

        monkeypatch.setattr(checkpoint, "read", refuse)
        assert [weight.tensor for weight in find_subnormal_weights(checkpoint)] == ["0.weight"]


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 32), (torch.float16, 0)], ids=str)
def test_numbers_count_that_are_subnormal_when_computed_with(dtype: torch.dtype, count: int, tmp_path: Path) -> None:
    weight = torch.ones(8, 8, dtype=dtype)
    weight[4:] = torch.finfo(dtype).tiny / 2
    torch.save({"a.weight": weight}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert sum(each.count for each in find_subnormal_weights(checkpoint)) == count


def test_analyze_and_latency_warn_about_them(path: Path) -> None:
    done = run("analyze", path)
    assert b"`0.weight` has 3,456 (75 %), and 1 more tensors have many" in done.stdout + done.stderr
    document = json.loads(run("analyze", path, "--json").stdout)
    assert document["subnormals"][1] == {"tensor": "1.weight", "count": 72, "parameters": 288}
    options: dict[str, Any] = {"rank": 4, "model": network(), "input_shapes": ["1,16,5,5"]}
    for latency in (True, False):
        report = lrzip.compress(path, path.with_name(f"small-{latency}.pt"), **options, latency=latency)
        assert any("`0.weight` has 3,456" in note for note in report.notes) == latency


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.Flatten(), nn.Linear(32, 10))
