"""Networks may keep states of any type beside their tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.networks.state import copy_of, load_tensors, tensors_of
from tests.support.networks import WithState


def test_states_that_are_no_tensors_are_left_out() -> None:
    model = WithState()
    assert tensors_of(model).keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert all(isinstance(value, nn.Parameter) for value in tensors_of(model, keep_vars=True).values())


def test_lazy_parameters_are_refused_by_name() -> None:
    with pytest.raises(LrzipError, match=r"`1\.weight` has no shape before the network has run"):
        tensors_of(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(4)))


def test_states_that_are_no_tensors_may_be_missing_and_tensors_may_not() -> None:
    model, other = WithState(), WithState()
    other.scale.version = {"v": 9}
    load_tensors(model, tensors_of(other))
    assert model.scale.version == {"v": 3}
    load_tensors(model, other.state_dict())
    assert model.scale.version == {"v": 9}
    with pytest.raises(RuntimeError, match=r"fc1\.weight"):
        load_tensors(model, {name: tensor for name, tensor in tensors_of(other).items() if name != "fc1.weight"})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_networks_with_computed_weights_are_copied(parametrize: Any) -> None:
    model = nn.Sequential(parametrize(nn.Linear(6, 5)), nn.Linear(5, 4)).eval()
    x = torch.rand(3, 6)
    copied = copy_of(model)
    assert torch.allclose(copied(x), model(x))
    originals = tensors_of(model)
    assert all(not _same_memory(tensor, originals[name]) for name, tensor in tensors_of(copied).items())


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr()
