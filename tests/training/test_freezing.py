from collections.abc import Sequence

import pytest
from torch import nn

from lrzip.core.errors import UnknownName, UsageError
from lrzip.training.freezing import freeze, is_frozen_batchnorm
from tests.support.tasks import Classifier


def trained(only: Sequence[str] = (), skip: Sequence[str] = ()) -> set[str]:
    """Return the modules of a factorized classifier that are still trained."""
    network = Classifier()
    network.set_submodule("fc1", nn.Sequential(nn.Linear(12, 3, bias=False), nn.Linear(3, 32)))
    freeze(network, only=only, skip=skip)
    return {name.rpartition(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        ((), (), {"fc1.0", "fc1.1", "bn", "fc2"}),
        (("fc1",), (), {"fc1.0", "fc1.1"}),
        ((), ("fc1",), {"bn", "fc2"}),
        (("fc*",), ("fc2",), {"fc1.0", "fc1.1"}),
        (("fc1.0", "bn"), (), {"fc1.0", "bn"}),
    ],
)
def test_patterns_select_modules_with_all_that_they_contain(
    only: Sequence[str], skip: Sequence[str], expected: set[str]
) -> None:
    assert trained(only, skip) == expected


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    with pytest.raises(UnknownName, match=rf"`{option}=fc9` matches no module with parameters."):
        trained(**{option: ("fc1", "fc9")})


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(UsageError, match="leave no parameter to train"):
        trained(skip=("*",))


def test_a_batch_norm_is_frozen_with_its_parameters() -> None:
    network = Classifier()
    assert not is_frozen_batchnorm(network.bn)
    freeze(network, skip=("bn",))
    assert is_frozen_batchnorm(network.bn)
    assert not is_frozen_batchnorm(network.fc1.requires_grad_(False))
    assert not is_frozen_batchnorm(nn.BatchNorm1d(2, affine=False))
