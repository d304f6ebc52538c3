"""A small convolutional network, and the handwritten digits of scikit-learn: 1797 gray images of 8×8 pixels."""

from functools import cache
from typing import Literal, TypeAlias

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

Part: TypeAlias = Literal["train", "validation", "test"]


class Net(nn.Module):
    """Three convolutions and two linear layers, more than images of 8×8 pixels need."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 80, 3, padding=1)
        self.fc1 = nn.Linear(80 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, 10) of images (n, 1, 8, 8)."""
        x = torch.relu(self.conv1(images))  # (n, 24, 8, 8)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)  # (n, 48, 4, 4)
        x = torch.max_pool2d(torch.relu(self.conv3(x)), 2)  # (n, 80, 2, 2)
        x = torch.relu(self.fc1(x.flatten(1)))  # (n, 64)
        logits: Tensor = self.fc2(x)
        return logits


@cache
def digits() -> dict[Part, tuple[Tensor, Tensor]]:
    """Return the images (n, 1, 8, 8) in [0, 1] and the labels (n,) of each part. The split is fixed.

    Choices are made on the validation part; the test part is used for final results only.
    """
    images, labels = load_digits(return_X_y=True)
    fitting, test = train_test_split(range(len(labels)), test_size=450, stratify=labels, random_state=0)
    train, validation = train_test_split(fitting, test_size=247, stratify=labels[fitting], random_state=0)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    return {"train": (x[train], y[train]), "validation": (x[validation], y[validation]), "test": (x[test], y[test])}


@torch.inference_mode()
def accuracy(model: nn.Module, part: Part = "test") -> float:
    """Return the percentage of images that a model classifies correctly."""
    images, labels = digits()[part]
    return 100 * int((model(images).argmax(1) == labels).sum()) / len(labels)
