import pytest
import torch

from lrzip.training.optimizers import make_optimizer
from lrzip.training.settings import Settings
from tests.support.networks import seeded
from tests.support.tasks import Convolutional


def test_biases_and_norms_do_not_decay() -> None:
    optimizer = make_optimizer(seeded(Convolutional).parameters(), Settings(weight_decay=0.1))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 2), (0.0, 4)]


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [("adamw", torch.optim.AdamW, 3e-3), ("adam", torch.optim.Adam, 3e-3), ("sgd", torch.optim.SGD, 5e-2)],
)
def test_each_name_has_its_optimizer_and_default_rate(
    name: str, kind: type[torch.optim.Optimizer], rate: float
) -> None:
    optimizer = make_optimizer(seeded(Convolutional).parameters(), Settings(optimizer=name))
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {rate}


def test_frozen_parameters_are_left_out() -> None:
    model = seeded(Convolutional)
    model.get_parameter("conv.weight").requires_grad_(False)
    optimizer = make_optimizer(model.parameters(), Settings())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 4]
