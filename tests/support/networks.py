"""Small networks that together have layers of every kind."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with every attribute that factors must inherit, batch norm, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), padding_mode="circular")
        self.fc1 = nn.Linear(24 * 8 * 3, 20)
        self.fc2 = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        out: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return out


class Sound(nn.Module):
    """One- and three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(12, 20, 5, padding="same")
        self.volume = nn.Conv3d(4, 18, 3, stride=(1, 2, 1), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        volume = self.line(x).reshape(len(x), 4, 5, 4, -1)
        out: Tensor = self.volume(volume)
        return out


class Block(nn.Module):
    """A block of the CIFAR-10 ResNets of He et al. (2016), with the parameter-free shortcut A."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.widen = (out - channels) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.widen, self.widen))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet(nn.Module):
    """ResNet-20 (three blocks a stage) or 32 (five) for 32×32 images."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels: int, out: int, stride: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(Block(channels, out, stride), *(Block(out, out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def seeded(factory: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network with reproducible weights in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory().eval()


class Zoo(nn.Module):
    """Layers of every kind: with weights of exact rank 2, and those that must be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 32, 3, stride=2, padding=1, groups=4)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.BatchNorm2d(32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.words = nn.Embedding(60, 16)
        self.tokens = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 50, bias=False)
        self.tied.weight = self.tokens.weight
        for layer in (self.stem, self.grouped, self.up, self.words, self.mix, self.head):
            weight = layer.weight.detach()
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            matrices = weight.flatten(1).reshape(groups, len(weight) // groups, -1)
            u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
            weight.copy_(((u[..., :2] * s[..., None, :2]) @ vh[..., :2, :]).reshape(weight.shape))

    @staticmethod
    def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
        """Return images and token ids."""
        images = torch.linspace(-1, 1, batch * 3 * 12 * 12).reshape(batch, 3, 12, 12).sin()
        return images, torch.arange(batch * 5).reshape(batch, 5)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.stem(image))))
        x = self.up(torch.relu(self.norm(self.depthwise(x))))
        h, _ = self.lstm(self.words(ids) + self.tokens(ids))
        h = self.mix(h + self.attention(h, h, h, need_weights=False)[0]) + x.mean((2, 3))[:, None]
        out: Tensor = self.tied(self.head(h))
        return out


class Scale(nn.Module):
    """A module whose state is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.version: dict[str, int] = {"v": 3}

    def get_extra_state(self) -> dict[str, int]:
        return self.version

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state

    def forward(self, x: Tensor) -> Tensor:
        return x


class WithState(nn.Module):
    """Linear layers around a module whose state is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.scale, self.fc2 = nn.Linear(24, 24), Scale(), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.scale(torch.relu(self.fc1(x))))
        return out
