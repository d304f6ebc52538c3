from typing import Any

import pytest

from lrzip.core.errors import UsageError
from lrzip.training.settings import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "`optimizer` takes"),
        ({"schedule": "step"}, "`schedule` takes"),
        ({"amp": "int8"}, "`amp` takes"),
        ({"shard": True, "amp": "fp16"}, "Leave out `amp=fp16`"),
        ({"epochs": 0}, "`epochs` takes"),
        ({"steps": 0}, "`steps` takes"),
        ({"batch_size": 0}, "`batch_size` takes"),
        ({"lr": 0.0}, "`lr` takes"),
        ({"clip": -1.0}, "`clip` takes"),
        ({"weight_decay": float("nan")}, "`weight_decay` takes"),
        ({"warmup": 1.5}, "`warmup` takes"),
        ({"patience": 0}, "`patience` takes"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**options)


@pytest.mark.parametrize(("samples", "size"), [(10, 10), (100, 16), (1024, 32), (1 << 20, 128)])
def test_the_default_batch_gives_at_least_32_steps_an_epoch_within_limits(samples: int, size: int) -> None:
    assert Settings().batch(samples) == size


def test_a_batch_is_no_larger_than_the_data() -> None:
    assert Settings(batch_size=64).batch(40) == 40
    assert Settings(batch_size=64).batch(400) == 64


def test_given_rates_and_decays_replace_the_defaults() -> None:
    settings = Settings(optimizer="sgd", lr=0.5, weight_decay=0.0)
    assert (settings.rate, settings.decay) == (0.5, 0.0)
    assert (Settings(optimizer="sgd").rate, Settings(optimizer="sgd").decay) == (5e-2, 1e-4)
