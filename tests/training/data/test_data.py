from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.data.augmentation import Preparation, augment, prepare
from lrzip.training.data.read import read_data
from lrzip.training.data.samples import draws
from tests.support.tasks import classes, write_data


class Noisy(Dataset[tuple[Tensor, int]]):
    """Adds noise of its own to each item."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(3) + float(np.random.rand()), index % 2


class Endless(IterableDataset[Tensor]):
    """Has no length."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(3)


def noisy() -> Dataset[Any]:
    return Noisy()


def endless() -> Dataset[Any]:
    return Endless()


def named() -> Any:
    x, y = classes(60)
    return [{"a": a, "b": a + 1, "labels": label} for a, label in zip(x, y, strict=True)]


def several() -> Any:
    x, y = classes(60)
    return [(a, a + 1, label) for a, label in zip(x, y, strict=True)]


def unlabelled() -> Any:
    return TensorDataset(classes(60)[0]), list(classes(60)[0])


def pair() -> Any:
    x, y = classes(60)
    return DataLoader(TensorDataset(x[:40], y[:40]), batch_size=7), TensorDataset(x[40:], y[40:])


def failing() -> Any:
    raise ValueError("no\nluck")


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_files_of_arrays_are_read_and_split(suffix: str, tmp_path: Path) -> None:
    x, y = classes(100)
    path = tmp_path / f"data.{suffix}"
    if suffix == "npz":
        write_data(path, x, y, names=torch.zeros(3))
    elif suffix == "pt":
        torch.save({"x": x, "y": y}, path)
    else:
        save_file({"x": x, "y": y}, path)
    data = read_data(str(path), val_fraction=0.2, seed=1)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (80, 20)
    train, val = data.train.fetch(range(80)), data.val.fetch(range(20))
    rows = torch.cat([train[0], val[0]])
    # Together they are all rows, each once.
    assert torch.equal(rows[rows[:, 0].argsort()], x[x[:, 0].argsort()])
    assert data.val.labels is not None
    assert val[1] is not None
    assert torch.equal(data.val.labels, val[1])


def test_the_split_follows_from_the_seed(tmp_path: Path) -> None:
    spec = str(write_data(tmp_path / "data.npz", *classes(100)))
    firsts = [read_data(spec, seed=seed).train.fetch(range(90))[0] for seed in (0, 0, 1)]
    assert torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], firsts[2])


def test_parts_are_found_and_picked(tmp_path: Path) -> None:
    x, y = classes(30)
    arrays = {"train_x": x[:20], "train_y": y[:20], "val_x": x[20:], "val_y": y[20:]}
    np.savez(tmp_path / "parts.npz", **{name: array.numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
    spec = str(tmp_path / "parts.npz")
    data = read_data(spec)
    assert data.val is not None
    assert torch.equal(data.val.fetch(range(10))[0], x[20:])
    picked = read_data(f"{spec}:train", val=f"{spec}:val")
    assert picked.val is not None
    assert (len(picked.train), len(picked.val)) == (20, 10)
    assert len(read_data(f"{spec}:train", val_fraction=0.5).train) == 10
    with pytest.raises(LrzipError, match=r"there is no part `test`\. There are: train, val"):
        read_data(f"{spec}:test")


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 8, 8), torch.uint8, (2, 1, 8, 8)),
        ((2, 8, 8, 3), torch.uint8, (2, 3, 8, 8)),
        ((2, 3, 8, 8), torch.uint8, (2, 3, 8, 8)),
        ((2, 8, 8, 3), torch.int64, (2, 3, 8, 8)),
        ((2, 64), torch.uint8, (2, 64)),
    ],
)
def test_integer_images_are_scaled_with_channels_first(
    shape: tuple[int, ...], dtype: torch.dtype, expected: tuple[int, ...]
) -> None:
    x = prepare(torch.full(shape, 255, dtype=dtype), Preparation((0.5,), (0.25,)))
    assert x.shape == expected
    assert torch.equal(x, torch.full(expected, 2.0))


def test_indices_and_floats_stay_as_they_are() -> None:
    assert prepare(torch.arange(6).reshape(2, 3), Preparation()).dtype == torch.int64
    x = torch.rand(2, 8, 8, 3)
    assert torch.equal(prepare(x, Preparation()), x)
    channels = prepare(torch.ones(2, 3, 4, 4), Preparation((1.0, 0.0, 0.5), (1.0, 2.0, 0.5)))
    assert channels[0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]


def test_crops_are_shifts_and_flips_mirror() -> None:
    """An image of distinct pixels, shifted by (down, right) in −2…2: what is uncovered is 0."""
    x = torch.arange(1.0, 257).reshape(1, 1, 16, 16)
    moved = augment(x, ["crop"], torch.tensor([[0.99, 0.0, 0.9]]))
    assert torch.equal(moved[0, 0, :-2, 2:], x[0, 0, 2:, :-2])
    assert torch.equal(moved[0, 0, -2:], torch.zeros(2, 16))
    assert torch.equal(augment(x, ["flip"], torch.tensor([[0.0, 0.0, 0.1]])), x.flip(3))
    assert torch.equal(augment(x, ["flip"], torch.tensor([[0.0, 0.0, 0.6]])), x)
    assert torch.equal(augment(x, ["crop"], torch.tensor([[0.5, 0.5, 0.0]])), x)


def test_augmentation_follows_from_seed_epoch_and_example(tmp_path: Path) -> None:
    x = torch.randint(256, (50, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    preparation = Preparation.parse(None, None, "crop,flip")
    data = read_data(str(write_data(tmp_path / "d.npz", x, torch.zeros(50))), preparation=preparation)
    alone, together = data.train.fetch([7], seed=3, epoch=2)[0], data.train.fetch([2, 7], seed=3, epoch=2)[0]
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(alone, data.train.fetch([7], seed=3, epoch=3)[0])
    assert data.val is not None
    assert torch.equal(data.val.fetch([1], epoch=1)[0], data.val.fetch([1])[0])
    assert float(draws(1000, 0, 1).mean()) == pytest.approx(0.5, abs=0.03)  # 5 deviations of 3000 uniform numbers


def test_items_of_datasets_are_the_same_wherever_they_are_read() -> None:
    data = read_data("tests.training.data.test_data:noisy", val_fraction=0)
    assert data.val is None
    state = torch.get_rng_state()
    alone, together = data.train.fetch([7], epoch=1)[0], data.train.fetch([2, 7], epoch=1)[0]
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(alone, data.train.fetch([7], epoch=2)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_code_may_give_a_loader_and_a_validation_set() -> None:
    data = read_data("tests.training.data.test_data:pair")
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (40, 20)
    assert torch.equal(data.train.fetch([1, 3])[0], classes(60)[0][[1, 3]])


def test_items_may_have_several_inputs_or_no_label() -> None:
    x, y = classes(60)
    inputs, labels = read_data("tests.training.data.test_data:named").train.fetch([0])
    assert set(inputs) == {"a", "b"}
    assert labels is not None
    (first, second), label = read_data("tests.training.data.test_data:several", val_fraction=0).train.fetch([3, 4])
    assert torch.equal(first, x[[3, 4]])
    assert torch.equal(second, first + 1)
    assert label is not None
    assert torch.equal(label, y[[3, 4]])
    data = read_data("tests.training.data.test_data:unlabelled")
    assert data.val is not None
    for samples in (data.train, data.val):
        alone, nothing = samples.fetch([5])
        assert nothing is None
        assert torch.equal(alone, x[5:6])


def images(folder: Path, size: tuple[int, int] = (8, 6)) -> Path:
    """Write two images of each of two classes, of one color each."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", size, (255 * label, 51 * index, 0)).save(folder / name / f"{index}.png")
    return folder


def test_folders_of_images_have_a_class_a_subfolder(tmp_path: Path) -> None:
    data = read_data(str(images(tmp_path / "images")), val_fraction=0)
    x, y = data.train.fetch(range(4))
    assert x.shape == (4, 3, 6, 8)
    assert y is not None
    assert y.tolist() == [0, 0, 1, 1]
    assert torch.allclose(x[:, :, 0, 0], torch.tensor([[0, 0, 0], [0, 0.2, 0], [1, 0, 0], [1, 0.2, 0]]))
    resized = read_data(str(tmp_path / "images"), val_fraction=0, image_size=4).train
    assert resized.fetch([0])[0].shape == (1, 3, 4, 4)


def test_folders_may_have_parts(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        images(tmp_path / "images" / part)
    data = read_data(str(tmp_path / "images"))
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (4, 4)


def test_images_of_other_sizes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    Image.new("RGB", (5, 5)).save(folder / "cat" / "2.png")
    with pytest.raises(LrzipError, match=r"2\.png` is 5×5 and .* 8×6. Give `--image-size`"):
        read_data(str(folder), val_fraction=0).train.fetch(range(5))
    (folder / "cat" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnot quite")
    with pytest.raises(LrzipError, match=r"2\.png` cannot be read as an image"):
        read_data(str(folder), val_fraction=0).train.fetch(range(5))
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(LrzipError, match="holds no images in subfolders"):
        read_data(str(tmp_path / "empty"))


def _write(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


NAN = np.array([[0.0], [np.nan], [np.inf]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": NAN, "labels": NAN}, "has no array `x` or `train_x`. It has: images, labels"),
        ({"x": np.zeros((3, 1)), "y": np.zeros(2)}, "`x` has 3 rows and `y` has 2"),
        ({"x": NAN, "y": np.zeros(3)}, "`x` has NaN or infinite values in 2 rows, the first is row 1"),
        ({"x": np.zeros((3, 1)), "y": NAN}, "`y` has NaN or infinite values"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0)}, r"`x` of shape \(0, 4\) holds no examples"),
        ({"x": np.array(1.0)}, r"`x` of shape \(\) holds no examples"),
        ({"x": np.zeros(3, dtype=complex)}, "`x` is complex"),
        ({"x": np.array(["a", "b"])}, r"`x` holds texts"),
        ({"x": np.array([{}])}, r"The data in .* cannot be read: Object arrays cannot be loaded"),
        ({"x": np.zeros((1, 1)), "y": np.zeros(1)}, None),
    ],
)
def test_arrays_that_are_no_data_are_named(arrays: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    spec = _write(tmp_path / "data.npz", **arrays)
    if message is None:
        assert read_data(spec).val is None  # a tenth of one example is none
        return
    with pytest.raises(LrzipError, match=message) as error:
        read_data(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone.npz", "`--data gone.npz` does not exist"),
        ("tests.training.data.test_data:gone", "has no `gone`"),
        ("tests.training.data.test_data:failing", "failed: ValueError: no luck"),
        ("tests.training.data.test_data:endless", "gave Endless; it takes a Dataset with a length"),
        ("tests.training.data.test_data:_write", "failed: TypeError: "),
        ("README.md", "is no data that lrzip reads"),
    ],
)
def test_what_is_no_data_is_said_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(LrzipError, match=message) as error:
        read_data(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damaged", "content"), [("a.npz", b"PK\x03\x04 no"), ("b.pt", b"nothing"), ("c.safetensors", b"\x08\x00")]
)
def test_damaged_files_are_named(damaged: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(LrzipError, match=r"The data in .* cannot be read: ") as error:
        read_data(str(tmp_path / damaged))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("1,x", None, None), "`--mean` takes numbers such as"),
        ((None, "0.2,0", None), "`--std` takes numbers above 0"),
        (("nan", None, None), "`--mean` takes finite numbers"),
        ((None, None, "crop,spin"), "`--augment` takes crop, flip, got `spin`"),
    ],
)
def test_preparations_that_make_no_sense_are_refused(options: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preparation.parse(*options)


def test_code_prepares_its_own_inputs() -> None:
    with pytest.raises(UsageError, match="is code: let it normalize and augment"):
        read_data("tests.training.data.test_data:noisy", preparation=Preparation((0.5,), (), ()))
