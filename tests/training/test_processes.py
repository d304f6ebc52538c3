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


@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["whole", "sharded"])
def test_two_processes_learn_what_one_does(options: tuple[str, ...], tmp_path: Path) -> None:
    """With the same global batch, batch norm included, to the rounding of float32 over 22 steps."""
    write_compressed(tmp_path)
    data = write_data(tmp_path / "data.npz", *classes())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lrzip"),
        *("finetune", str(tmp_path / "small.pt"), "--model", "tests.support.tasks:Classifier", "--data", str(data)),
        *("--epochs", "2", "--batch-size", "32", "--optimizer", "sgd", "--json", "-o", str(tmp_path / "two.pt")),
        *options,
    ]
    root = str(Path(lrzip.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, timeout=120, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b'"schema"') == 1
    settings = Settings(epochs=2, batch_size=32, optimizer="sgd")
    lrzip.finetune(tmp_path / "small.pt", tmp_path / "one.pt", model=Classifier(), data=str(data), settings=settings)
    start, one, two = (torch.load(tmp_path / name)["state_dict"] for name in ("small.pt", "one.pt", "two.pt"))
    for name, tensor in one.items():
        moved = float((tensor - start[name]).double().norm())
        assert float((two[name] - tensor).double().norm()) <= 1e-4 * max(moved, 1e-3), name


def test_one_process_has_nothing_to_share_out(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", *classes())
    with pytest.raises(UsageError, match="Start it with torchrun"):
        lrzip.finetune(write_compressed(tmp_path), model=Classifier(), data=str(data), settings=Settings(shard=True))
    with pytest.raises(UsageError, match="Leave out `--amp fp16`"):
        Settings(shard=True, amp="fp16")


def test_half_precision_on_the_cpu_and_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(LrzipError, match="needs a GPU"):
        make_accelerator("cpu", "fp16")
    with pytest.raises(LrzipError, match="`--device nowhere` cannot be used"):
        make_accelerator("nowhere", "no")


def test_auto_is_bfloat16_for_images_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert precision("auto", "cpu", images=True) == "bf16"
    assert precision("auto", "cpu", images=False) == precision("no", "cpu", images=True) == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert precision("auto", "cpu", images=True) == "no"
    assert precision("bf16", "cpu", images=False) == "bf16"


def test_bfloat16_is_computed_in_and_float32_kept(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watching(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            seen.append(output.dtype)
            return output

    data = write_data(tmp_path / "data.npz", *classes())
    model: nn.Module = Watching()
    report = lrzip.finetune(
        write_compressed(tmp_path), model=model, data=str(data), settings=Settings(epochs=3, lr=1e-2, amp="bf16")
    )
    assert torch.bfloat16 in seen
    assert report.after["accuracy"] > report.before["accuracy"]
    tensors = torch.load(report.output)["state_dict"].values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
