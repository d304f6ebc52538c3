"""The weights of TorchScript programs are read without executing anything."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.jit
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from tests.support.networks import Net, ResNet, Sound, Zoo, seeded

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")


JIT: Any = torch.jit  # without types


class Words(nn.Module):
    """A network with shared weights, a non-persistent buffer, a plain attribute, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, 2)
        self.tokens = nn.Embedding(30, 4)
        self.head = nn.Linear(4, 30, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.scratch = torch.zeros(3)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.tokens(ids))[0])
        return out


def scripted(model: nn.Module, path: Path) -> Path:
    program = JIT.script(model)
    program.save(str(path))
    return path


@pytest.mark.parametrize("factory", [Net, Sound, ResNet, Words])
def test_weights_are_those_of_the_loaded_program(factory: type[nn.Module], tmp_path: Path) -> None:
    path = scripted(seeded(factory), tmp_path / "a.pt")
    _check(path)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_programs_are_read_as_well(tmp_path: Path) -> None:
    program = JIT.trace(seeded(Zoo), Zoo.inputs(), check_trace=False)
    program.save(str(tmp_path / "a.jit"))
    _check(tmp_path / "a.jit")
    assert {item.candidate.layer.name for item in lrzip.analyze(tmp_path / "a.jit").layers} >= {"stem", "mix", "head"}


def _check(path: Path) -> None:
    state = JIT.load(str(path)).state_dict()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torchscript"
        assert list(checkpoint.tensors()) == list(state)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)


def test_the_advice_for_compressing_a_program_works(tmp_path: Path) -> None:
    path = scripted(seeded(Net), tmp_path / "a.pt")
    with pytest.raises(UnsupportedCheckpoint, match=r"lrzip export .*a\.pt --to state-dict"):
        lrzip.compress(path, tmp_path / "b.pt", rank=2)
    result = lrzip.export(path, "state-dict", tmp_path / "weights.pt")
    assert result.dropped == (("the TorchScript program", "a state_dict has no place for it"),)
    lrzip.compress(tmp_path / "weights.pt", tmp_path / "small.pt", rank=2)
    loaded = lrzip.load_into(Net(), tmp_path / "small.pt")
    assert [getattr(loaded, name)[0].weight.shape[0] for name in ("conv1", "conv2", "fc1", "fc2")] == [2] * 4
    with pytest.raises(UnsupportedCheckpoint, match="does not write TorchScript"):
        lrzip.compress(tmp_path / "weights.pt", tmp_path / "small.jit", rank=2)
    with pytest.raises(UnsupportedCheckpoint, match="`key=net`"):
        open_checkpoint(path, key="net")


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    path = scripted(seeded(Net), tmp_path / "a.pt")
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    with pytest.raises(UnsupportedCheckpoint, match="damaged"):
        open_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/code/bomb.py", bytes(1 << 27))
    with pytest.raises(UnsupportedCheckpoint, match="more code than any program needs"):
        open_checkpoint(path)


@pytest.mark.parametrize("to", ["state-dict", "safetensors"])
def test_the_weights_of_frozen_programs_have_no_names(to: str, tmp_path: Path) -> None:
    frozen = JIT.freeze(JIT.script(seeded(Net)))
    frozen.save(str(tmp_path / "a.pt"))
    for read in (
        lambda: lrzip.analyze(tmp_path / "a.pt"),
        lambda: lrzip.export(tmp_path / "a.pt", to, tmp_path / "b.pt"),
    ):
        with pytest.raises(UnsupportedCheckpoint, match=r"frozen TorchScript program: its weights are \d+ constants"):
            read()
    assert not (tmp_path / "b.pt").exists()
