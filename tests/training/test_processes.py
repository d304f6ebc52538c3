import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.processes import make_accelerator, precision
from lrzip.training.settings import Settings
from tests.support.tasks import Classifier, classes, write_compressed, write_data

SETTINGS = Settings(epochs=2, batch_size=32, optimizer="sgd")
VARIANTS = {"replicated": (), "sharded": ("--shard",)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks tuned from `small.pt`, by one process (`one.pt`) and by two, once for each variant."""
    folder = tmp_path_factory.mktemp("processes")
    write_compressed(folder)
    data = write_data(folder / "data.npz", *classes())
    options = ["--model", "tests.support.tasks:Classifier", "--data", str(data), "--epochs", "2", "--batch-size", "32"]
    command = ["finetune", str(folder / "small.pt"), *options, "--optimizer", "sgd", "--json"]
    commands = [[*command, *variant, "-o", str(folder / f"{name}.pt")] for name, variant in VARIANTS.items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    root = str(Path(lrzip.__file__).parents[1])
    done = subprocess.run(
        [*launcher, "tests.support.command_group", json.dumps(commands)],
        check=False,
        capture_output=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    # One document per command, although there are two processes.
    assert done.stdout.count(b'"schema"') == len(commands)
    lrzip.finetune(folder / "small.pt", folder / "one.pt", model=Classifier(), data=str(data), settings=SETTINGS)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_learn_what_one_does(variant: str, tuned: Path) -> None:
    """With the same global batch, batch norm included, up to the rounding of float32 over 22 steps."""
    start, one, two = (torch.load(tuned / name)["state_dict"] for name in ("small.pt", "one.pt", f"{variant}.pt"))
    assert two.keys() == one.keys() >= {"fc1.0.weight", "bn.running_mean", "fc2.bias"}
    for name, tensor in one.items():
        moved = float((tensor - start[name]).double().norm())
        assert moved > 0, name
        assert float((two[name] - tensor).double().norm()) <= 1e-4 * max(moved, 1e-3), name


def test_one_process_cannot_shard(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", *classes())
    with pytest.raises(UsageError, match="Start it with torchrun"):
        lrzip.finetune(write_compressed(tmp_path), model=Classifier(), data=str(data), settings=Settings(shard=True))


def test_half_precision_on_the_cpu_and_missing_devices_are_refused() -> None:
    with pytest.raises(LrzipError, match="needs a GPU"):
        make_accelerator("cpu", "fp16")
    with pytest.raises(LrzipError, match="`device=nowhere` cannot be used"):
        make_accelerator("nowhere", "no")


def test_auto_is_bfloat16_for_images_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision("auto", "cpu", images=True) == "bf16"
    assert precision("auto", "cpu", images=False) == precision("no", "cpu", images=True) == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert precision("auto", "cpu", images=True) == "no"
    assert precision("bf16", "cpu", images=False) == "bf16"


def test_the_forward_pass_is_bfloat16_and_weights_stay_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Recording(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            seen.append(output.dtype)
            return output

    data = write_data(tmp_path / "data.npz", *classes())
    model: nn.Module = Recording()
    report = lrzip.finetune(
        write_compressed(tmp_path), model=model, data=str(data), settings=Settings(epochs=3, lr=1e-2, amp="bf16")
    )
    assert torch.bfloat16 in seen
    assert report.after["accuracy"] > report.before["accuracy"]
    tensors = torch.load(report.output)["state_dict"].values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
