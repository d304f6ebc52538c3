from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.forward import apply, probe, use_channels_last
from tests.support.networks import seeded
from tests.support.tasks import Classifier, Convolutional, classes, images


class Several(nn.Module):
    """Takes and returns several tensors."""

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"hidden": a, "logits": a + b}


class Nothing(nn.Module):
    """Returns None."""

    def forward(self, x: Tensor) -> None:
        del x


class Viewing(Convolutional):
    """Calls `view` on activations, which must be contiguous for it."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).view(len(x), -1))
        return out


def test_inputs_may_be_positional_or_named_and_outputs_structured() -> None:
    a, b = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(apply(Several(), (a, b)), a + b)
    assert torch.equal(apply(Several(), {"b": b, "a": a}), a + b)


def test_a_network_without_output_is_refused() -> None:
    with pytest.raises(LrzipError, match="returns NoneType without a tensor"):
        apply(Nothing(), torch.ones(2, 3))


def test_inputs_of_another_shape_are_named() -> None:
    with pytest.raises(LrzipError, match=r"does not take the inputs of `d`, float32 \(5,\)"):
        probe(seeded(Classifier), Samples("d", Arrays(torch.zeros(3, 5), None)))


def test_probing_restores_the_mode() -> None:
    model = seeded(Classifier).train()
    before = model.get_buffer("bn.running_mean").clone()
    probe(model, Samples("d", Arrays(*classes())))
    assert model.training
    assert torch.equal(model.get_buffer("bn.running_mean"), before)


def test_networks_that_convolve_images_are_converted_to_channels_last() -> None:
    model = seeded(Convolutional)
    assert use_channels_last(model, Samples("images", Arrays(images(4), None)))
    assert model.get_parameter("conv.weight").is_contiguous(memory_format=torch.channels_last)


def test_networks_that_cannot_run_in_channels_last_are_left_unchanged() -> None:
    model = seeded(Viewing)
    assert not use_channels_last(model, Samples("images", Arrays(images(4), None)))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_networks_without_images_are_left_unchanged() -> None:
    assert not use_channels_last(seeded(Classifier), Samples("features", Arrays(*classes())))
