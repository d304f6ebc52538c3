from pathlib import Path

import pytest
import torch

import lrzip
from lrzip.core.errors import UsageError
from lrzip.training.learning import Learning
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_curve_writes_nothing_and_lists_plans_in_the_given_order(path: Path) -> None:
    found = lrzip.curve(path, "params=80%,40%")
    limits = [point.plan.budget.limit for point in found.points if point.plan.budget]
    assert limits == sorted(limits, reverse=True)
    assert [point.output for point in found.points] == [None, None]
    assert (found.dense, list(found.measured)) == (None, [])
    assert [file.name for file in path.parent.iterdir()] == ["net.pt"]
    document = found.to_dict()
    assert document["input"] == document["points"][0]["input"] == str(path)
    assert "evaluation" not in document


def test_settings_of_a_calibration_need_data(path: Path) -> None:
    from lrzip.calibration.settings import CalibrationSettings

    with pytest.raises(UsageError, match="`calibration` has no effect without calibration data"):
        lrzip.curve(path, "params=80%,40%", calibration=CalibrationSettings())


def test_plans_are_measured_on_a_network(path: Path) -> None:
    with pytest.raises(UsageError, match="`data` is what a network is measured on: give `model="):
        lrzip.curve(path, "params=80%,40%", learning=Learning("x.npz"))
