"""Time and accuracy of compressing ResNet-20 to half of its parameters and fine-tuning it.

    python -m tests.benchmarks.recovery --checkpoint resnet20-12fca82f.th --data CIFAR10 [--steps N] [--output FOLDER]

`--data` is a folder with CIFAR-10 as `train_1.npz`, …, `train_5.npz` and `test.npz` (x, y). `lrzip compress` and
`lrzip finetune` run in separate processes, whose start is included in the times: with the SVD and with Tucker-2, both
calibrated on 1,024 training images, and with the SVD of the weights alone. The dense checkpoint is the teacher, so that
labels only decide which epoch is best. Test images are used once per file, at the end. Writes `recovery.md`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import lrzip
from tests.benchmarks.budget_curves import MEAN, STD, accuracy, load
from tests.benchmarks.hardware import hardware, versions
from tests.support.networks import ResNet

NETWORK = ("--model", "tests.support.networks:ResNet")
NORMALIZED = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))


def main() -> None:
    """Measure all methods; print and write the table."""
    parser = argparse.ArgumentParser(description="Time how a compressed ResNet-20 recovers.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="dense ResNet-20")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--steps", type=int, default=1000, help="steps of fine-tuning")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    arguments = parser.parse_args()
    test = load(arguments.data / "test.npz", None)
    rows = [["dense", f"{parameters(arguments.checkpoint):,}", "", "", top1(arguments.checkpoint, *test), ""]]
    with tempfile.TemporaryDirectory(prefix="lrzip-recovery-") as name:
        folder = Path(name)
        images = joined(arguments.data, folder)
        calibrated = ("--calibrate", str(images), *NORMALIZED)
        ways = {
            "calibrated": calibrated,
            "from weights alone": (),
            "Tucker, calibrated": ("--decomposition", "tucker", *calibrated),
        }
        for how, chosen in ways.items():
            small, tuned = (folder / f"{how}-{stage}.th" for stage in ("small", "tuned"))
            compressed = run(
                "compress", arguments.checkpoint, "--budget", "params=50%", *NETWORK, *chosen, "--output", small
            )
            teacher = ("--teacher", arguments.checkpoint, "--teacher-share", "1", "--lr", "2e-3")
            prepared = ("--data", images, *NORMALIZED, "--augment", "crop,flip")
            trained = run(
                *("finetune", small, *NETWORK, *prepared, *teacher),
                *("--steps", arguments.steps, "--output", tuned),
            )
            size, seconds = f"{parameters(small):,}", (f"{compressed:.0f}", f"{trained:.0f}")
            rows.append([how, size, *seconds, top1(small, *test), top1(tuned, *test)])
    text = document(rows, arguments.steps)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "recovery.md").write_text(text, encoding="utf-8")


def joined(data: Path, folder: Path) -> Path:
    """Write the training images as one file, and return it."""
    files = [np.load(path, allow_pickle=False) for path in sorted(data.glob("train_*.npz"))]
    path = folder / "train.npz"
    np.savez(path, x=np.concatenate([file["x"] for file in files]), y=np.concatenate([file["y"] for file in files]))
    return path


def run(*words: object) -> float:
    """Run a command of lrzip, and return its wall time in seconds."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "lrzip", *map(str, words), "--quiet"], check=True)
    return perf_counter() - start


@torch.no_grad()
def top1(path: Path, images: torch.Tensor, labels: torch.Tensor) -> str:
    """Return the test accuracy of a checkpoint, dense or factorized, in percent."""
    return f"{accuracy(lrzip.load_into(ResNet(), path).eval(), images, labels):.2f}"


def parameters(path: Path) -> int:
    """Return the number of parameters of a checkpoint."""
    return sum(parameter.numel() for parameter in lrzip.load_into(ResNet(), path).parameters())


def document(rows: Sequence[Sequence[str]], steps: int) -> str:
    """Return the table."""
    header = ["factors", "parameters", "compress, s", "finetune, s", "test before", "test after"]
    table = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    lines = [
        "# ResNet-20 at half of its parameters\n",
        f"{hardware()}. {versions('torch', 'accelerate')}.\n",
        f"Accuracy in percent on the CIFAR-10 test set; {steps:,} steps of `lrzip finetune` with the dense network as "
        "the only teacher, batches of 128 cropped and flipped training images, seed 0. Wall time of the complete "
        "commands.\n",
        *(f"| {' | '.join(row)} |" for row in table),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
