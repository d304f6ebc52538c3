"""Small tasks with a known answer, and networks that can learn them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lrzip
from tests.networks import seeded


class Classifier(nn.Module):
    """A perceptron with batch norm: 12 features, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 32)
        self.bn = nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.bn(self.fc1(x))))
        return out


class Regressor(nn.Module):
    """A perceptron: 12 features, one number, (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 32)
        self.fc2 = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.tanh(self.fc1(x)))
        return out


def classes(count: int = 400) -> tuple[Tensor, Tensor]:
    """Return features and the nearest of four far-apart centers."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(4, 12, generator=generator)
    y = torch.arange(count) % 4
    return centers[y] + torch.randn(count, 12, generator=generator), y


def numbers(count: int = 400) -> tuple[Tensor, Tensor]:
    """Return features and a linear function of them, (n,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator)
    return x, x @ torch.randn(12, generator=generator)


def write_data(path: Path, x: Tensor, y: Tensor | None = None, **others: Tensor) -> Path:
    """Write arrays to an .npz."""
    named = {"x": x} | ({} if y is None else {"y": y}) | others
    arrays = {name: array.numpy() for name, array in named.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_compressed(folder: Path, kind: type[nn.Module] = Classifier) -> Path:
    """Write a network with random weights, factorized at rank 4."""
    torch.save({"epoch": 3, "state_dict": seeded(kind).state_dict(), "optimizer": {}}, folder / "dense.pt")
    lrzip.compress(folder / "dense.pt", folder / "small.pt", rank=4, layers={"fc2": "keep"}, force=True)
    return folder / "small.pt"
