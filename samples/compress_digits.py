"""Compress `digits.pt`, load the result in three ways, and compare parameters and test accuracy."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from digits import Net, accuracy
from torch import Tensor, nn

import lrzip

CHECKPOINT = Path(__file__).with_name("digits.pt")


def read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, with nothing but PyTorch."""
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Load weights strictly into a network."""
    model.load_state_dict(state)
    return model


def with_factors(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Replace each layer `x` that has a key `x.0.weight` by two; the first dimension of that weight is the rank."""
    for name in [key.removesuffix(".0.weight") for key in state if key.endswith(".0.weight")]:
        setattr(model, name, two_layers(getattr(model, name), len(state[f"{name}.0.weight"])))
    return model


def two_layers(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """Return the layers that replace one: the first has its kernel and `rank` outputs, the second has its bias."""
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features))
    first = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1))


def main() -> None:
    """Print the keys of one factorized layer, then the accuracy after each way of loading."""
    with TemporaryDirectory() as folder:
        small, dense = Path(folder, "digits.lrzip.pt"), Path(folder, "digits.dense.pt")
        lrzip.compress(CHECKPOINT, small, energy=0.95)
        lrzip.export(small, "dense", dense)
        for key in ("conv2.0.weight", "conv2.1.weight", "conv2.1.bias"):
            print(key, tuple(read(small)[key].shape))
        ways = {
            "digits.pt": load(Net(), read(CHECKPOINT)),
            "compressed, plain PyTorch": load(with_factors(Net(), read(small)), read(small)),
            "compressed, lrzip.load_into": lrzip.load_into(Net(), small),
            "compressed, --to dense": load(Net(), read(dense)),
        }
    print(f"\n{'':<28} parameters  test accuracy")
    for name, model in ways.items():
        print(f"{name:<28} {sum(p.numel() for p in model.parameters()):>10,} {accuracy(model):>12.2f} %")


if __name__ == "__main__":
    main()
