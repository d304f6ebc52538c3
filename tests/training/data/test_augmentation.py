import pytest
import torch

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.data.augmentation import Preparation, augment, prepare


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


def test_indices_and_floats_are_unchanged() -> None:
    assert prepare(torch.arange(6).reshape(2, 3), Preparation()).dtype == torch.int64
    x = torch.rand(2, 8, 8, 3)
    assert torch.equal(prepare(x, Preparation()), x)


def test_each_channel_is_normalized_by_its_own_numbers() -> None:
    channels = prepare(torch.ones(2, 3, 4, 4), Preparation((1.0, 0.0, 0.5), (1.0, 2.0, 0.5)))
    assert channels[0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(LrzipError, match=r"take 1 or 3 numbers for inputs of shape \(3, 4, 4\), got 2"):
        prepare(torch.ones(2, 3, 4, 4), Preparation((1.0, 0.0)))


def test_crops_are_shifts_and_flips_mirror() -> None:
    """An image of distinct pixels, shifted by (down, right) in −2…2: uncovered pixels are 0."""
    x = torch.arange(1.0, 257).reshape(1, 1, 16, 16)
    moved = augment(x, ["crop"], torch.tensor([[0.99, 0.0, 0.9]]))
    assert torch.equal(moved[0, 0, :-2, 2:], x[0, 0, 2:, :-2])
    assert torch.equal(moved[0, 0, -2:], torch.zeros(2, 16))
    assert torch.equal(augment(x, ["flip"], torch.tensor([[0.0, 0.0, 0.1]])), x.flip(3))
    assert torch.equal(augment(x, ["flip"], torch.tensor([[0.0, 0.0, 0.6]])), x)
    assert torch.equal(augment(x, ["crop"], torch.tensor([[0.5, 0.5, 0.0]])), x)


def test_only_images_are_augmented() -> None:
    with pytest.raises(LrzipError, match=r"is for images, but inputs have shape \(12,\)"):
        augment(torch.zeros(2, 12), ["crop"], torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("1,x", None, None), "`mean` takes numbers such as"),
        ((None, "0.2,0", None), "`std` takes numbers above 0"),
        (("nan", None, None), "`mean` takes finite numbers"),
        ((None, None, "crop,spin"), "`augment` takes crop, flip, got `spin`"),
    ],
)
def test_options_out_of_range_are_refused(options: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preparation.parse(*options)


def test_options_are_parsed() -> None:
    assert Preparation.parse("0.5,0.4", "0.2", "crop, flip") == Preparation((0.5, 0.4), (0.2,), ("crop", "flip"))
    assert Preparation.parse(None, None, None) == Preparation()
