"""Published checkpoints and CIFAR-10, where they are at hand.

`LRZIP_CHECKPOINTS` names a folder with `resnet_cifar10/resnet20-12fca82f.th`, `resnet32-d509ac18.th`, `mtcnn/*.pt`,
`dncnn/dncnn_25.pth`, `silero_vad/silero_vad_16k.safetensors` and `silero_vad.jit`; `LRZIP_CIFAR10` one with `test.npz`
(x, y).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.jit
from torch import nn

import lrzip
from lrzip.formats import open_checkpoint
from tests.networks import ResNet


def place(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder")
    return Path(os.environ[variable])


def resnet(name: str) -> Path:
    return place("LRZIP_CHECKPOINTS") / "resnet_cifar10" / name


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return top-1 in percent on the CIFAR-10 test set."""
    data = np.load(place("LRZIP_CIFAR10") / "test.npz", allow_pickle=False)
    x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    predicted = torch.cat([model.eval()(batch).argmax(1) for batch in torch.split(x, 500)])
    return 100 * float((predicted == torch.from_numpy(data["y"])).float().mean())


# Parameters and layers of a plain truncated SVD in float64, `conv1` left whole, computed independently.
@pytest.mark.parametrize(
    ("name", "energy", "parameters", "layers"),
    [
        ("resnet20-12fca82f.th", 0.99, 265_946, 4),
        ("resnet20-12fca82f.th", 0.95, 240_874, 18),
        ("resnet20-12fca82f.th", 0.90, 206_586, 19),
        ("resnet32-d509ac18.th", 0.95, 406_010, 30),
    ],
)
@pytest.mark.parametrize("svd", ["auto", "exact", "single-pass"])
def test_resnets_shrink_to_the_reference(name: str, energy: float, parameters: int, layers: int, svd: str) -> None:
    report = lrzip.compress(resnet(name), energy=energy, skip=["conv1"], svd=svd, dry_run=True)
    assert (report.parameters_after, len(report.plan.factorize)) == (parameters, layers)


@pytest.mark.parametrize(
    ("name", "blocks", "expected"), [("resnet20-12fca82f.th", 3, 87.5), ("resnet32-d509ac18.th", 5, 90.4)]
)
def test_resnets_keep_their_accuracy(name: str, blocks: int, expected: float, tmp_path: Path) -> None:
    lrzip.compress(resnet(name), tmp_path / "small.th", energy=0.95, skip=["conv1"])
    assert "best_prec1" in torch.load(tmp_path / "small.th", weights_only=True)
    lrzip.export(tmp_path / "small.th", "dense", tmp_path / "dense.th")
    before = accuracy(lrzip.load_into(ResNet(blocks), resnet(name)))
    small = accuracy(lrzip.load_into(ResNet(blocks), tmp_path / "small.th"))
    print(f"{name}: CIFAR-10 test accuracy {before:.2f} before, {small:.2f} compressed")
    assert small == pytest.approx(expected, abs=0.3)
    state = torch.load(tmp_path / "dense.th", weights_only=True)["state_dict"]
    dense = ResNet(blocks)
    dense.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    assert accuracy(dense) == pytest.approx(small, abs=0.05)  # a handful of images on the edge, by rounding


@pytest.mark.parametrize("name", ["mtcnn/pnet.pt", "mtcnn/rnet.pt", "mtcnn/onet.pt", "dncnn/dncnn_25.pth"])
def test_others_come_back_dense(name: str, tmp_path: Path) -> None:
    path = place("LRZIP_CHECKPOINTS") / name
    report = lrzip.compress(path, tmp_path / "small.pt", energy=0.9)
    lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "dense.pt")
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "dense.pt"))
    assert before.keys() == after.keys()
    errors = {result.decision.layer.weight.name: result.error for result in report.results}
    assert errors
    for tensor_name, tensor in before.items():
        error = float((after[tensor_name] - tensor).norm() / tensor.norm())
        assert error == pytest.approx(errors.get(tensor_name, 0), rel=1e-4)


def test_a_recurrent_network_keeps_its_recurrence_whole(tmp_path: Path) -> None:
    path = place("LRZIP_CHECKPOINTS") / "silero_vad" / "silero_vad_16k.safetensors"
    report = lrzip.compress(path, tmp_path / "small.safetensors", energy=0.9)
    reasons = {keep.name: keep.reason for keep in report.plan.keep}
    assert reasons["lstm_cell.weight_ih"].startswith("recurrent weight")
    assert report.plan.factorize


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_torchscript_is_read_without_running_it(tmp_path: Path) -> None:
    path = place("LRZIP_CHECKPOINTS") / "silero_vad" / "silero_vad.jit"
    jit: Any = torch.jit  # without types
    state = jit.load(str(path)).state_dict()
    lrzip.export(path, "safetensors", tmp_path / "a.safetensors")
    with open_checkpoint(path) as checkpoint, open_checkpoint(tmp_path / "a.safetensors") as copy:
        assert list(checkpoint.tensors()) == list(state)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert torch.equal(copy.read(name), tensor)


@pytest.mark.parametrize("kind", ["program", "module"])
def test_a_resnet_keeps_its_accuracy_as_a_program_and_as_a_module(kind: str, tmp_path: Path) -> None:
    model = lrzip.load_into(ResNet(), resnet("resnet20-12fca82f.th")).eval()
    path, output = ((tmp_path / f"{name}.{'pt2' if kind == 'program' else 'pt'}") for name in ("dense", "small"))
    if kind == "program":
        shapes = ({0: torch.export.Dim("batch", min=1, max=512)},)
        torch.export.save(torch.export.export(model, (torch.ones(2, 3, 32, 32),), dynamic_shapes=shapes), path)
    else:
        torch.save(model, path)
    report = lrzip.compress(path, output, energy=0.95, skip=["conv1"], trust=True)
    assert (report.parameters_after, len(report.plan.factorize)) == (240_874, 18)
    small: Any = torch.export.load(output).module() if kind == "program" else torch.load(output, weights_only=False)
    small.eval = lambda: small  # an exported module is in evaluation mode, and refuses to be told so
    assert accuracy(small) == pytest.approx(87.5, abs=0.3)
