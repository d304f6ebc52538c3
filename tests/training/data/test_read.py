from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import read_data, read_inputs, read_parts
from tests.support.tasks import classes, write_data
from tests.training.data.test_images import write_images

HERE = "tests.training.data.test_read"


class Endless(IterableDataset[Tensor]):
    """A dataset without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(3)


def endless() -> Any:
    return Endless()


def empty() -> Any:
    return []


def pair() -> Any:
    x, y = classes(60)
    return DataLoader(TensorDataset(x[:40], y[:40]), batch_size=7), TensorDataset(x[40:], y[40:])


def alone() -> Any:
    return TensorDataset(*classes(60))


def failing() -> Any:
    raise ValueError("no\nluck")


def with_argument(x: Tensor) -> Tensor:
    return x


def test_a_validation_set_is_split_off(tmp_path: Path) -> None:
    x, y = classes(100)
    data = read_data(str(write_data(tmp_path / "data.npz", x, y)), val_fraction=0.2, seed=1)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (80, 20)
    train, val = data.train.fetch(range(80)), data.val.fetch(range(20))
    rows = torch.cat([train[0], val[0]])
    # Together they are all rows, each once.
    assert torch.equal(rows[rows[:, 0].argsort()], x[x[:, 0].argsort()])
    assert data.val.labels is not None
    assert val[1] is not None
    assert torch.equal(data.val.labels, val[1])


def test_the_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    spec = str(write_data(tmp_path / "data.npz", *classes(100)))
    trains = [read_data(spec, seed=seed).train.fetch(range(90))[0] for seed in (0, 0, 1)]
    assert torch.equal(trains[0], trains[1])
    assert not torch.equal(trains[0], trains[2])


def test_a_split_that_rounds_to_nothing_gives_no_validation_set(tmp_path: Path) -> None:
    spec = str(write_data(tmp_path / "data.npz", torch.zeros(4, 1), torch.zeros(4)))
    assert read_data(spec).val is None  # a tenth of four samples
    with pytest.raises(LrzipError, match="has 4 samples, too few to split off"):
        read_data(spec, val_fraction=0.9)


def test_only_the_training_set_is_augmented(tmp_path: Path) -> None:
    x = torch.randint(256, (50, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    spec = str(write_data(tmp_path / "d.npz", x, torch.zeros(50)))
    data = read_data(spec, preparation=Preparation(augment=("crop", "flip")))
    assert data.val is not None
    assert torch.equal(data.val.fetch(range(5), epoch=1)[0], data.val.fetch(range(5))[0])
    assert not torch.equal(data.train.fetch(range(5), epoch=1)[0], data.train.fetch(range(5))[0])


def test_parts_are_found_and_selected(tmp_path: Path) -> None:
    x, y = classes(30)
    path = write_data(tmp_path / "d.npz", train_x=x[:20], train_y=y[:20], val_x=x[20:], val_y=y[20:])
    data = read_data(str(path))
    assert data.val is not None
    assert torch.equal(data.val.fetch(range(10))[0], x[20:])
    selected = read_data(f"{path}:train", val=f"{path}:val")
    assert selected.val is not None
    assert (len(selected.train), len(selected.val)) == (20, 10)
    assert len(read_data(f"{path}:train", val_fraction=0.5).train) == 10
    with pytest.raises(LrzipError, match=r"there is no part `test`\. There are: train, val"):
        read_data(f"{path}:test")


def test_test_data_is_refused_for_training_and_calibration(tmp_path: Path) -> None:
    x, y = classes(30)
    spec = str(write_data(tmp_path / "d.npz", test_x=x, test_y=y))
    with pytest.raises(UsageError, match=r"`data=.*` is test data"):
        read_data(spec)
    with pytest.raises(UsageError, match=r"`calibrate=.*` is test data"):
        read_inputs(spec, preparation=Preparation())
    assert list(read_parts(spec, preparation=Preparation())) == ["test"]


def test_folders_of_images_are_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "images" / part)
    data = read_data(str(tmp_path / "images"), image_size=4)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (4, 4)
    assert data.train.fetch([0])[0].shape == (1, 3, 4, 4)


def test_code_may_return_a_loader_and_a_validation_set() -> None:
    data = read_data(f"{HERE}:pair")
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (40, 20)
    assert torch.equal(data.train.fetch([1, 3])[0], classes(60)[0][[1, 3]])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone.npz", "`data=gone.npz` does not exist"),
        (f"{HERE}:gone", "has no `gone`"),
        (f"{HERE}:failing", "failed: ValueError: no luck"),
        (f"{HERE}:endless", "gave Endless; it takes a Dataset with a length"),
        (f"{HERE}:empty", "gave a list without samples"),
        (f"{HERE}:with_argument", "failed: TypeError: "),
        ("README.md", "is not data that lrzip reads"),
    ],
)
def test_unusable_specifications_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(LrzipError, match=message) as error:
        read_data(spec)
    assert "\n" not in str(error.value)


def test_a_fraction_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="`val_fraction` takes a share"):
        read_data("data.npz", val_fraction=1.0)


def test_code_prepares_its_own_inputs() -> None:
    with pytest.raises(UsageError, match="is code: let it normalize and augment"):
        read_data(f"{HERE}:alone", preparation=Preparation((0.5,), (), ()))
