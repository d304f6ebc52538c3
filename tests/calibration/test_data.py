from pathlib import Path

import numpy as np
import pytest
import torch

from lrzip.calibration.data import batches_of, choose_samples
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import LrzipError
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.samples import Arrays, Samples, UserDataset

X = torch.arange(20.0)[:, None]


def test_samples_are_chosen_at_random_by_the_seed() -> None:
    chosen = [choose_samples(X, CalibrationSettings(samples=8, seed=seed)).fetch(range(8))[0] for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert len(set(chosen[0].flatten().tolist())) == 8


def test_a_file_gives_what_its_tensor_gives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X.numpy())
    settings = CalibrationSettings(samples=8, preparation=Preparation((2.0,), (4.0,)))
    found = choose_samples(tmp_path / "x.npz", settings)
    expected = choose_samples(X, settings)
    assert torch.equal(found.fetch(range(8))[0], expected.fetch(range(8))[0])
    assert found.name == str(tmp_path / "x.npz")


def test_batches_are_of_one_size() -> None:
    samples = choose_samples(X, CalibrationSettings(samples=20))
    batches = list(batches_of(samples, CalibrationSettings(batch_size=6), None))
    assert [len(args[0]) for args, _ in batches] == [6, 6, 6]
    assert len(list(batches_of(samples, CalibrationSettings(batch_size=64), None))) == 1


def test_floating_point_inputs_are_cast_and_indices_are_not() -> None:
    for x, dtype in ((X, torch.float64), (torch.arange(20)[:, None], torch.int64)):
        (((inputs,), _), *_) = batches_of(Samples("x", Arrays(x, None)), CalibrationSettings(), torch.float64)
        assert inputs.dtype == dtype


def test_named_and_several_inputs_become_arguments() -> None:
    named = Samples("n", UserDataset([{"a": row, "labels": 0} for row in X], None))  # type: ignore[arg-type]
    ((args, kwargs),) = batches_of(named, CalibrationSettings(), None)
    assert args == ()
    assert kwargs.keys() == {"a"}
    several = Samples("s", UserDataset([(row, row + 1, 0) for row in X], None))  # type: ignore[arg-type]
    ((args, kwargs),) = batches_of(several, CalibrationSettings(), None)
    assert torch.equal(args[1], args[0] + 1)
    assert kwargs == {}


def test_a_file_without_inputs_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", y=np.arange(10))
    with pytest.raises(LrzipError, match="has no array `x`"):
        choose_samples(tmp_path / "labels.npz", CalibrationSettings())
