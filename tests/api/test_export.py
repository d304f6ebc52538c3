from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from tests.support.checkpoints import BUILDERS, nested
from tests.support.networks import Net, seeded


@pytest.fixture(params=BUILDERS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = BUILDERS[request.param](tmp_path)
    output = lrzip.compress(path, ratio=2).output
    assert output
    return output


def test_dense_has_the_names_shapes_and_dtypes_of_the_original(small: Path, tmp_path: Path) -> None:
    original = tmp_path / small.name.replace(".lrzip", "")
    lrzip.export(small, "dense")
    dense = next(path for path in tmp_path.iterdir() if ".dense" in path.name)
    before, after = (lrzip.analyze(path).to_dict() for path in (original, dense))
    assert [(x["tensor"], x["shape"], x["dtype"]) for x in before["layers"]] == [
        (x["tensor"], x["shape"], x["dtype"]) for x in after["layers"]
    ]
    assert before["kept"] == after["kept"]


def test_dense_is_the_product_of_the_factors(tmp_path: Path) -> None:
    path = nested(tmp_path)
    lrzip.compress(path, tmp_path / "small.pt", ratio=2)
    result = lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "dense.pt")
    factored = torch.load(tmp_path / "small.pt", weights_only=True)
    dense = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert dense["epoch"] == 7
    assert sorted(result.chains) == [f"module.{name}" for name in ("conv1", "conv2", "extra.low", "fc1", "fc2")]
    stages = [factored["state_dict"][f"module.conv2.{stage}.weight"] for stage in (1, 0)]
    expected = torch.einsum("orab,rihw->oihw", *stages)
    torch.testing.assert_close(dense["state_dict"]["module.conv2.weight"], expected)


def test_safetensors_and_state_dict_carry_every_tensor(small: Path, tmp_path: Path) -> None:
    for to, name in (("safetensors", "x.safetensors"), ("state-dict", "x.pt")):
        lrzip.export(small, to, tmp_path / name)
    one = load_file(tmp_path / "x.safetensors")
    two = torch.load(tmp_path / "x.pt", weights_only=True)
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)
    assert all(isinstance(value, torch.Tensor) for value in two.values())


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    path = nested(tmp_path)
    for to in ("safetensors", "state-dict"):
        dropped = {name for name, _ in lrzip.export(path, to).dropped}
        assert dropped == {"epoch", "optimizer", "best_prec1", "hyper_parameters"}


def test_a_dense_checkpoint_has_nothing_to_multiply(tmp_path: Path) -> None:
    path = nested(tmp_path)
    with pytest.raises(LrzipError, match="no factorized layers to multiply back"):
        lrzip.export(path, "dense")


def test_targets_and_suffixes_must_agree(tmp_path: Path) -> None:
    path = nested(tmp_path)
    with pytest.raises(UsageError, match=r"`--to safetensors` does not write \.pt files"):
        lrzip.export(path, "safetensors", tmp_path / "x.pt")
    with pytest.raises(UsageError, match="got tflite"):
        lrzip.export(path, "tflite")


def test_tensors_that_safetensors_cannot_hold_are_named(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.rand(9, 9), "c": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "a.pt")
    with pytest.raises(LrzipError, match="no dtype for `c`, which is complex128"):
        lrzip.export(tmp_path / "a.pt", "safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_dense_loads_into_the_unchanged_class(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", ratio=2)
    lrzip.export(tmp_path / "a.lrzip.pt", "dense", tmp_path / "dense.pt")
    Net().load_state_dict(torch.load(tmp_path / "dense.pt", weights_only=True))
