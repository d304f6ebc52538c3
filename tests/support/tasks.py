"""Small tasks with a known solution, and networks that can learn them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lrzip
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.learning import Learning
from lrzip.training.settings import Settings
from tests.support.networks import seeded


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


class Convolutional(nn.Module):
    """A convolution, batch norm and dropout: 3×8×8 pixels, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))
        return out


class Deep(nn.Module):
    """A perceptron of four layers: 12 features, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 24)
        self.fc2 = nn.Linear(24, 32)
        self.fc3 = nn.Linear(32, 24)
        self.fc4 = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.fc1, self.fc2, self.fc3):
            x = torch.relu(layer(x))
        out: Tensor = self.fc4(x)
        return out


class TwoConvolutions(nn.Module):
    """Two 3×3 convolutions over the 12 features as 3 channels of 2×2 pixels, and a linear layer: 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x.reshape(-1, 3, 2, 2)))
        out: Tensor = self.fc(torch.relu(self.conv2(x)).flatten(1))
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
    """Return features (count, 12) around four distant centers, and the number of the center as the class (count,)."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(4, 12, generator=generator)
    y = torch.arange(count) % 4
    return centers[y] + torch.randn(count, 12, generator=generator), y


def images(count: int, size: int = 8) -> Tensor:
    """Return normal noise of shape (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def surprise(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy, a metric that any change of the outputs changes."""
    return nn.functional.cross_entropy(output, target)


def numbers(count: int = 400) -> tuple[Tensor, Tensor]:
    """Return features (count, 12) and a linear function of them, (count,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator)
    return x, x @ torch.randn(12, generator=generator)


def write_data(path: Path, x: Tensor | None = None, y: Tensor | None = None, **others: Tensor) -> Path:
    """Write arrays to an .npz file."""
    named = ({} if x is None else {"x": x}) | ({} if y is None else {"y": y}) | others
    arrays = {name: array.numpy() for name, array in named.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_compressed(folder: Path, kind: type[nn.Module] = Classifier) -> Path:
    """Write a network with random weights, factorized at rank 4 except for `fc2`."""
    torch.save({"epoch": 3, "state_dict": seeded(kind).state_dict(), "optimizer": {}}, folder / "dense.pt")
    lrzip.compress(folder / "dense.pt", folder / "small.pt", rank=4, layers={"fc2": "keep"}, force=True)
    return folder / "small.pt"


def samples_of(x: Tensor, y: Tensor | None) -> Samples:
    """Return the rows of arrays as samples."""
    return Samples("arrays", Arrays(x, y))


def learning_of(x: Tensor, y: Tensor | None, **others: Any) -> Learning:
    """Return three quarters of the samples for training and the rest for validation, with quick fine-tunes."""
    count = len(x) * 3 // 4
    parts = [samples_of(x[part], None if y is None else y[part]) for part in (slice(count), slice(count, None))]
    settings = Settings(epochs=1, batch_size=32, lr=1e-2)
    return Learning(Data(*parts), **{"settings": settings, **others})


def write_trained(folder: Path, kind: type[nn.Module] = Classifier, *, steps: int = 150) -> Path:
    """Write a dense network that is trained on its task."""
    x, y = numbers() if kind is Regressor else classes()
    model = seeded(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        output = model(x)
        loss = (
            nn.functional.mse_loss(output[:, 0], y) if y.is_floating_point() else nn.functional.cross_entropy(output, y)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "optimizer": {}}, folder / "dense.pt")
    return folder / "dense.pt"
