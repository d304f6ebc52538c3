"""A perceptron for California housing at published compression ratios, with a test over seeds.

Experiment 7 of the report (Kant 2025, Compression of Neural Networks, section 16): the network 8-256-128-64-32-1 learns
the price of houses, is factorized, and retrained. R², RMSE and MAE are measured on the test set.

    python samples/experiments/housing.py --data california_housing.npz
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from experiment import Experiment, Measurements, chosen, curve, fit, parameters, say, score, spread, table
from matplotlib.figure import Figure
from scipy.stats import ttest_rel
from torch import Tensor, nn

import lrzip
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.settings import Settings

SEEDS = tuple(range(5))
# Determines the test set, which is the same for all seeds.
TEST_SEED = 100
DROPOUT = 0.05
# The learning rates, and leaving fc1 dense, were chosen on a validation set.
TRAINING = Settings(epochs=60, batch_size=128, optimizer="adam", lr=2e-3, amp="no")
RETRAINING = replace(TRAINING, epochs=20, lr=3e-3)
# Mean R² and RMSE by compression ratio (table 8); below, R², RMSE and MAE of the dense network.
PUBLISHED = {
    "4.63×": (0.8106, 0.5004),
    "5.53×": (0.8109, 0.5000),
    "9.15×": (0.8072, 0.5049),
    "11.62×": (0.7939, 0.5220),
}
PUBLISHED_DENSE = (0.8214, 0.4860, 0.3304)


class Regressor(nn.Module):
    """8-256-128-64-32-1 with ReLU, and dropout after the first three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 256)
        self.fc2 = nn.Linear(256, 128)
        self.fc3 = nn.Linear(128, 64)
        self.fc4 = nn.Linear(64, 32)
        self.fc5 = nn.Linear(32, 1)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardized prices (n, 1) of features (n, 8)."""
        x = features
        for layer in (self.fc1, self.fc2, self.fc3):
            x = self.dropout(torch.relu(layer(x)))
        prices: Tensor = self.fc5(torch.relu(self.fc4(x)))
        return prices


def houses(path: Path, seed: int) -> tuple[Samples, Samples, Samples, float]:
    """Return the training, validation and test set, and the unit of their prices in 100 000 $.

    A fifth of the houses is the test set, the same for every seed; a random fifth of the others is the validation set.
    All features and the price are standardized by mean and standard deviation of the training set.
    """
    file = np.load(path, allow_pickle=False)
    x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    others, test = parted(torch.arange(len(x)), TEST_SEED)
    train, val = parted(others, seed)
    preparation = Preparation(tuple(x[train].mean(0).tolist()), tuple(x[train].std(0).tolist()))
    center, unit = y[train].mean(), y[train].std()
    samples = Samples(str(path), Arrays(x, (y - center) / unit, preparation))
    return samples.subset(train), samples.subset(val), samples.subset(test), float(unit)


def parted(numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return a random split of numbers into four fifths and one fifth."""
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    count = len(numbers) // 5
    return numbers[order[count:]], numbers[order[:count]]


def measure(data: Path, quick: bool) -> Measurements:
    """Return the scores of all networks."""
    seeds, training, retraining = SEEDS, TRAINING, RETRAINING
    if quick:
        seeds, training, retraining = SEEDS[:2], replace(TRAINING, epochs=1), replace(RETRAINING, epochs=1)
    rows = []
    for seed in seeds:
        train, val, test, unit = houses(data, seed)
        torch.manual_seed(seed)
        dense = Regressor()
        fit(dense, train, replace(training, seed=seed), val=val)
        networks: dict[str, nn.Module] = {"dense": dense, "dense, trained further": copy.deepcopy(dense)}
        for ratio in PUBLISHED:
            budget = f"params={100 / float(ratio.rstrip('×')):.3f}%"
            networks[ratio] = lrzip.factorize(dense, budget=budget, skip=["fc1"])
            networks[f"{ratio}, fc1 too"] = lrzip.factorize(dense, budget=budget)
        for name, model in networks.items():
            before = score(model, test, "r2")["r2"]
            if model is not dense:
                fit(model, train, replace(retraining, seed=seed), val=val)
            rows.append(
                {
                    "seed": seed,
                    "network": name,
                    "parameters": parameters(model),
                    "before": before,
                    **_in_dollars(score(model, test, "r2", "rmse", "mae"), unit),
                    "val": score(model, val, "r2")["r2"],
                }
            )
            say(rows[-1])
    return {"rows": rows}


def _in_dollars(scores: dict[str, float], unit: float) -> dict[str, float]:
    return {"r2": scores["r2"], "rmse": scores["rmse"] * unit, "mae": scores["mae"] * unit}


def document(results: Measurements) -> str:
    """Return the table."""
    rows = results["rows"]
    dense = chosen(rows, network="dense")
    published = [f"{value:.4f}" for value in PUBLISHED_DENSE]
    lines = [["published, dense", "45,569", published[0], "", *published[1:], "", ""]]
    for name in dict.fromkeys(row["network"] for row in rows):
        if name in PUBLISHED:
            r2, rmse = PUBLISHED[name]
            changed = f"{r2 - PUBLISHED_DENSE[0]:+.4f}"
            lines.append([f"published, {name}", "", f"{r2:.4f}", changed, f"{rmse:.4f}", "", "", "below 0.05"])
        lines.append(_line(name, chosen(rows, network=name), dense))
    header = ["network", "parameters", "R²", "against dense", "RMSE", "MAE", "R² before", "p"]
    return f"""
Test set, RMSE and MAE in 100 000 $, mean ± standard deviation over seeds 0 to {len(dense) - 1}; `R² before` is
measured before retraining. `p` is the p-value of a two-sided paired t-test of R² against the dense network over the
seeds, which determine the initial weights, the validation set and the order of the samples. The test set, a fifth of
the houses, is always the same, and nothing was chosen on it.

A compressed network is `lrzip.factorize(model, budget="params=…%", skip=["fc1"])`, trained for {RETRAINING.epochs}
epochs, with the state that is best on the validation set. The dense network is trained further in the same way, since
training alone may help. `fc1` has 8 inputs, all of which matter, so that factorizing it loses much more than
factorizing the other layers; the rows `fc1 too` include it.

Differences from the published schedule: the ranks follow from a budget at the published ratios, while the published
ones were searched layer by layer with training in between; {TRAINING.epochs} epochs of training with a cosine schedule
and the best state, instead of 100 with early stopping; dropout {DROPOUT}, where the published one is not stated; the
published results are from 10 compressions of one network, ours from {len(dense)} networks. Learning rates, and leaving
`fc1` dense, were chosen on the validation sets of other seeds; that the budget does badly at 9.15× and 11.62× with
`fc1` was seen on the test set.

{table(header, lines)}
"""


def _line(name: str, found: Sequence[Measurements], dense: Sequence[Measurements]) -> list[str]:
    r2, reference = ([row["r2"] for row in group] for group in (found, dense))
    changed = "" if name == "dense" else f"{mean(r2) - mean(reference):+.4f}"
    p = "" if name == "dense" else f"{ttest_rel(r2, reference).pvalue:.2g}"
    scores = [spread([row[key] for row in found], 4) for key in ("r2", "rmse", "mae", "before")]
    return [name, f"{found[0]['parameters']:,}", scores[0], changed, *scores[1:], p]


def draw(results: Measurements, figure: Figure) -> None:
    """Plot R² and RMSE against the compression ratio, beside the published results."""
    rows = results["rows"]
    size = chosen(rows, network="dense")[0]["parameters"]
    names = list(PUBLISHED)
    ratios = [size / chosen(rows, network=name)[0]["parameters"] for name in names]
    axes, errors = figure.subplots(1, 2)
    for panel, key, place in ((axes, "r2", 0), (errors, "rmse", 1)):
        found = [[row[key] for row in chosen(rows, network=name)] for name in ("dense", *names)]
        curve(panel, [1, *ratios], found, "here")
        published = [PUBLISHED_DENSE[place], *(PUBLISHED[name][place] for name in names)]
        curve(panel, [1, *(float(name.rstrip("×")) for name in names)], [[value] for value in published], "published")
        panel.set_xlabel("times fewer parameters")
        panel.legend()
    axes.set_ylabel("R²")
    errors.set_ylabel("RMSE, 100 000 \\$")


if __name__ == "__main__":
    Experiment("housing", measure, document, draw).run(__doc__)
