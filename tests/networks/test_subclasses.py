"""Subclasses of nn.Linear with a `forward` of their own."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.kinds import LINEAR
from lrzip.networks.architecture import module_info


class Same(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class WithArgument(nn.Linear):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.linear(x, self.weight * scale, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) * 1.5


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-100, 100)


class Flattening(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2))


class Standardized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class Sized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.view(-1, 12), self.weight, self.bias)


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.delta = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.delta, self.bias)


class Alternating(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.dropout(x, 0.5, training=True), self.weight, self.bias)


def test_a_subclass_that_computes_a_linear_layer_is_one() -> None:
    for layer in (Same(12, 20), Same(12, 20, bias=False), Same(12, 20, device="meta")):
        before = {name: value.shape for name, value in layer.state_dict().items()}
        assert module_info(layer).kind is LINEAR
        assert {name: value.shape for name, value in layer.state_dict().items()} == before
        assert layer.in_features == 12


def test_a_subclass_that_computes_anything_else_is_none() -> None:
    for cls in (Scaled, Clamped, Flattening, Standardized, Sized, Adapted, Alternating, WithArgument):
        info = module_info(cls(12, 20))
        assert info.kind is None, cls.__name__
        assert info.reason == f"the weight of {cls.__name__}, which has no factors here"
