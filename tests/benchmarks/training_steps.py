"""Time of a training step, by precision, with and without a teacher.

    python -m tests.benchmarks.training_steps [--threads N] [--steps N] [--output FOLDER]

The ResNet-20 of CIFAR-10 at half of its parameters, batches of 128 random images of 32 × 32 pixels, cropped and
flipped, AdamW: complete steps of lrzip's training loop, including the preparation of batches. The weights are random,
since their values do not affect the time of a product. Variants are run alternately; times are medians. Writes
`training_steps.md`.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import nn

import lrzip
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.loop import Execution, train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.settings import Settings
from lrzip.training.tasks import CLASSIFICATION, Task
from tests.benchmarks.hardware import hardware, versions
from tests.support.networks import ResNet, seeded

BATCH, ROUNDS = 128, 3
TASK = Task(CLASSIFICATION, 10, labelled=True)
VARIANTS = [(amp, taught, frozen) for amp in ("no", "bf16") for taught in (False, True) for frozen in (False, True)]


def main() -> None:
    """Measure all variants; print and write the table."""
    parser = argparse.ArgumentParser(description="Time steps of fine-tuning.")
    parser.add_argument("--threads", type=int, help="threads of torch; by default its own choice")
    parser.add_argument("--steps", type=int, default=10, help="steps of each variant in each of three rounds")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dense = seeded(ResNet)
    pixels = torch.randint(256, (BATCH * arguments.steps, 32, 32, 3), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % 10
    preparation = Preparation((0.5,), (0.25,), ("crop", "flip"))
    data = Data(Samples("images", Arrays(pixels, labels, preparation)), None)
    seconds: dict[tuple[str, bool, bool], list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS):
        for variant, found in seconds.items():
            found += step_seconds(dense, data, *variant)
    text = document(seconds)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "training_steps.md").write_text(text, encoding="utf-8")


def step_seconds(dense: nn.Module, data: Data, amp: str, taught: bool, frozen: bool) -> list[float]:
    """Return the seconds of each step of an epoch except the first, which prepares the kernels."""
    model = lrzip.factorize(dense, budget="params=50%")
    objective = TrainingLoss(TASK, make_loss("auto", TASK), teacher=seeded(ResNet) if taught else None)
    settings = Settings(epochs=1, batch_size=BATCH, amp=amp, freeze_batchnorm=frozen)
    ends: list[float] = []
    execution = Execution(watch=lambda _: ends.append(perf_counter()))
    train(model, data, objective, Scorer([], TASK), settings, execution)
    return [end - start for start, end in pairwise(ends)]


def document(seconds: dict[tuple[str, bool, bool], list[float]]) -> str:
    """Return the table."""
    lines = [
        f"Milliseconds per training step of ResNet-20 at half of its parameters, batches of {BATCH}; medians. "
        f"{hardware()}; {versions('torch', 'accelerate', 'torchmetrics')}.",
        "",
        "| precision | teacher | batch norms | ms per step |",
        "|---|---|---|---|",
    ]
    for (amp, taught, frozen), found in seconds.items():
        cells = ["float32" if amp == "no" else amp, "yes" if taught else "no", "frozen" if frozen else "trained"]
        lines.append(f"| {' | '.join(cells)} | {1e3 * median(found):.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
