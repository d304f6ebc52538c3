"""Published checkpoints on CIFAR-10 and on synthetic inputs. Skipped without the environment variables below.

`LRZIP_CHECKPOINTS` names a folder with `resnet_cifar10/resnet20-12fca82f.th`, `resnet_cifar10/resnet32-d509ac18.th`,
`mtcnn/*.pt`, `dncnn/dncnn_25.pth`, `fastestdet/FastestDet.onnx`, `silero_vad/silero_vad_16k.safetensors`,
`silero_vad/silero_vad.jit` and `silero_vad/*.onnx`; `LRZIP_CIFAR10` names a folder with `test.npz` (x, y).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.jit
from torch import Tensor, nn

import lrzip
from lrzip.formats.open import open_checkpoint
from tests.support.graphs import Array, Tensors, run
from tests.support.networks import ResNet


def folder_of(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder")
    return Path(os.environ[variable])


def resnet(name: str) -> Path:
    return folder_of("LRZIP_CHECKPOINTS") / "resnet_cifar10" / name


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return top-1 in percent on the CIFAR-10 test set."""
    data = np.load(folder_of("LRZIP_CIFAR10") / "test.npz", allow_pickle=False)
    x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    predicted = torch.cat([model.eval()(batch).argmax(1) for batch in torch.split(x, 500)])
    return 100 * float((predicted == torch.from_numpy(data["y"])).float().mean())


# Parameters and factorized layers by a truncated SVD in float64 without `conv1`, computed independently of lrzip.
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
def test_resnets_shrink_to_reference_sizes(name: str, energy: float, parameters: int, layers: int, svd: str) -> None:
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
    assert accuracy(dense) == pytest.approx(small, abs=0.05)  # rounding may change the class of a few images


def test_a_resnet_has_the_same_accuracy_in_pytorch_and_onnxruntime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = resnet("resnet20-12fca82f.th")
    lrzip.compress(path, tmp_path / "small.th", energy=0.95, skip=["conv1"], model=ResNet())
    lrzip.export(tmp_path / "small.th", "onnx", tmp_path / "a.onnx", model=ResNet(), input_shapes=["1,3,32,32"])
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    class Runner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
            return found

    assert accuracy(Runner()) == accuracy(lrzip.load_into(ResNet(), tmp_path / "small.th"))


@pytest.mark.parametrize("name", ["mtcnn/pnet.pt", "mtcnn/rnet.pt", "mtcnn/onet.pt", "dncnn/dncnn_25.pth"])
def test_merged_factors_differ_from_the_dense_weights_by_the_reported_errors(name: str, tmp_path: Path) -> None:
    path = folder_of("LRZIP_CHECKPOINTS") / name
    report = lrzip.compress(path, tmp_path / "small.pt", energy=0.9)
    lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "dense.pt")
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "dense.pt"))
    assert before.keys() == after.keys()
    errors = {result.decision.layer.weight.name: result.error for result in report.results}
    assert errors
    for tensor_name, tensor in before.items():
        error = float((after[tensor_name] - tensor).norm() / tensor.norm())
        assert error == pytest.approx(errors.get(tensor_name, 0), rel=1e-4)


def test_recurrent_weights_are_left_dense(tmp_path: Path) -> None:
    path = folder_of("LRZIP_CHECKPOINTS") / "silero_vad" / "silero_vad_16k.safetensors"
    report = lrzip.compress(path, tmp_path / "small.safetensors", energy=0.9)
    reasons = {keep.name: keep.reason for keep in report.plan.keep}
    assert reasons["lstm_cell.weight_ih"].startswith("recurrent weight")
    assert report.plan.factorize


# Valid inputs: an image of noise, and noise at 16 kHz or 8 kHz with an empty state.
DETECTOR = {"input.1": np.random.default_rng(0).random((1, 3, 352, 352), dtype=np.float32)}
SPEECH: dict[str, Array] = {
    "input": np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32) / 10,
    "state": np.zeros((2, 1, 128), np.float32),
}
PROGRAMS: dict[str, list[Tensors]] = {
    "fastestdet/FastestDet.onnx": [DETECTOR],
    "silero_vad/silero_vad.onnx": [
        SPEECH | {"sr": np.array(16000)},
        SPEECH | {"input": SPEECH["input"][:, :288], "sr": np.array(8000)},
    ],
    "silero_vad/silero_vad_16k_op15.onnx": [SPEECH | {"sr": np.array(16000)}],
    "silero_vad/silero_vad_half.onnx": [SPEECH],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_have_the_same_outputs_at_full_rank(name: str, tmp_path: Path) -> None:
    path = folder_of("LRZIP_CHECKPOINTS") / name
    small = lrzip.compress(path, tmp_path / "small.onnx", energy=0.95)
    assert small.results
    assert small.differences
    full = lrzip.compress(path, tmp_path / "full.onnx", energy=1.0, force_factorize=True)
    assert len(full.results) >= len(small.results)
    worst = {"small": 0.0, "full": 0.0}
    for inputs in PROGRAMS[name]:
        before = run(path, inputs)
        for kind in worst:
            after = run(tmp_path / f"{kind}.onnx", inputs)
            assert {n: (v.shape, v.dtype) for n, v in after.items()} == {
                n: (v.shape, v.dtype) for n, v in before.items()
            }
            errors = [float(np.linalg.norm(after[n] - v) / np.linalg.norm(v)) for n, v in before.items()]
            worst[kind] = max(worst[kind], *errors)
    ratio = small.nbytes_before / small.nbytes_after
    print(f"{name}: {len(small.results)} layers, {ratio:.3f} times smaller, outputs differ by {worst['small']:.3g}")
    print(f"{name}: at full rank {len(full.results)} layers, outputs differ by {worst['full']:.3g}")
    # About 70 successive layers, each with an error of eps times the root of at most 400 inner channels.
    assert worst["full"] < 70 * 20 * np.finfo(np.float32).eps


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_torchscript_is_read_without_running_it(tmp_path: Path) -> None:
    path = folder_of("LRZIP_CHECKPOINTS") / "silero_vad" / "silero_vad.jit"
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
    small.eval = lambda: small  # an exported module is in evaluation mode, and has no `eval`
    assert accuracy(small) == pytest.approx(87.5, abs=0.3)


@pytest.mark.parametrize(
    "name", ["resnet_cifar10/resnet20-12fca82f.th", "resnet_cifar10/resnet32-d509ac18.th", "fastestdet/FastestDet.onnx"]
)
def test_budgets_are_used_to_within_half_a_percent(name: str) -> None:
    points = lrzip.curve(folder_of("LRZIP_CHECKPOINTS") / name, "params=40%,50%,60%,70%,80%,90%", round_to=1).points
    assert len(points) == 6
    for point in points:
        spent = point.plan.budget
        assert spent
        assert 0 <= spent.limit - spent.used <= 0.005 * spent.limit
        assert spent.predicted_loss - spent.bound <= 1e-6 * spent.predicted_loss
