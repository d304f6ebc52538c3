"""Train the network of `digits.py` and save the checkpoint that the other samples compress."""

import argparse
from pathlib import Path

import torch
from digits import Net, accuracy, digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset


def train(epochs: int) -> nn.Module:
    """Return a network trained from a fixed seed.

    The strong weight decay shrinks the small singular values, so that low ranks suffice. Like the learning rate and the
    number of epochs, it was chosen by accuracy on the validation part, before and after compression.
    """
    torch.manual_seed(0)
    model: nn.Module = Net()
    batches = DataLoader(TensorDataset(*digits()["train"]), batch_size=64, shuffle=True)
    optimizer = AdamW(model.parameters(), weight_decay=1.0)
    schedule = OneCycleLR(optimizer, max_lr=6e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def main() -> None:
    """Train the network, save it, and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("digits.pt"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of floating-point sums, and thus the weights, depends on the number of threads
    model = train(options.epochs)
    test_accuracy = accuracy(model)
    checkpoint = {"state_dict": model.state_dict(), "epoch": options.epochs, "test_accuracy": test_accuracy}
    torch.save(checkpoint, options.output)
    print(f"validation accuracy {accuracy(model, 'validation'):.2f} %")
    print(f"test accuracy {test_accuracy:.2f} %")


if __name__ == "__main__":
    main()
