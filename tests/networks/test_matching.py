"""Names of tensors are matched with those of networks, without the prefixes of wrappers."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.networks.matching import wrapper_prefix
from tests.support.networks import Net, seeded


@pytest.mark.parametrize(
    ("names", "trainer", "prefix"),
    [
        (["module.a", "module.b"], False, "module."),
        (["module.a", "b"], False, ""),
        (["module._orig_mod.a"], False, "module._orig_mod."),
        (["_orig_mod.module.a"], False, "_orig_mod.module."),
        (["model.a"], False, ""),
        (["model.a"], True, "model."),
        (["module.a", "n_averaged"], False, "module."),
        ([], True, ""),
    ],
)
def test_prefixes_are_those_that_wrappers_add_to_all_names(names: list[str], trainer: bool, prefix: str) -> None:
    assert wrapper_prefix(names, trainer=trainer) == prefix


def test_a_network_that_does_not_fit_is_named_by_the_first_difference(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    model = Net()
    model.fc2 = nn.Linear(20, 13)
    with pytest.raises(LrzipError, match=r"`fc2\.weight` has shape \(12, 20\), the model takes \(13, 20\)"):
        lrzip.compress(tmp_path / "a.pt", ratio=2, model=model)
    assert not (tmp_path / "a.lrzip.pt").exists()


def test_a_compressed_checkpoint_still_fits_its_network(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", ratio=2, only=["conv2"])
    report = lrzip.compress(tmp_path / "b.pt", tmp_path / "c.pt", ratio=2, model=Net())
    reasons = {keep.name: keep.reason for keep in report.plan.keep}
    assert reasons["conv2.0"] == reasons["conv2.1"] == "already factorized"
    loaded = lrzip.load_into(Net(), tmp_path / "c.pt")
    assert all(isinstance(getattr(loaded, name), nn.Sequential) for name in ("conv1", "conv2", "fc1", "fc2"))
