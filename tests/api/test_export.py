from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UnknownName, UsageError
from tests.support.checkpoints import BUILDERS, nested
from tests.support.networks import Net, Zoo, seeded


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


def test_only_selected_layers_are_merged(tmp_path: Path) -> None:
    lrzip.compress(nested(tmp_path), tmp_path / "small.pt", ratio=2)
    result = lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "a.pt", only=["fc*", "module.conv1"], skip=["fc2"])
    assert sorted(result.chains) == ["module.conv1", "module.fc1"]
    before, after = (torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("small.pt", "a.pt"))
    kept = {name for name in before if "conv2" in name or "fc2" in name}
    assert kept
    assert all(after[name].equal(before[name]) for name in kept)
    assert after["module.fc1.weight"].ndim == 2


def test_merging_options_need_a_match_and_the_target_dense(tmp_path: Path) -> None:
    lrzip.compress(nested(tmp_path), tmp_path / "small.pt", ratio=2)
    with pytest.raises(UnknownName, match="`skip=fc9` matches no factorized layer"):
        lrzip.export(tmp_path / "small.pt", "dense", skip=["fc9"])
    with pytest.raises(UsageError, match="`only` is for merging factors, with `to=dense`"):
        lrzip.export(tmp_path / "small.pt", "safetensors", only=["fc1"])
    with pytest.raises(UsageError, match="`device` is for merging factors"):
        lrzip.export(tmp_path / "small.pt", "state-dict", device="cuda")


def test_safetensors_and_state_dict_carry_every_tensor(small: Path, tmp_path: Path) -> None:
    for to, name in (("safetensors", "x.safetensors"), ("state-dict", "x.pt")):
        lrzip.export(small, to, tmp_path / name)
    one = load_file(tmp_path / "x.safetensors")
    two = torch.load(tmp_path / "x.pt", weights_only=True)
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)
    assert all(isinstance(value, torch.Tensor) for value in two.values())


def test_dropped_entries_are_listed(tmp_path: Path) -> None:
    path = nested(tmp_path)
    for to in ("safetensors", "state-dict"):
        dropped = {name for name, _ in lrzip.export(path, to).dropped}
        assert dropped == {"epoch", "optimizer", "best_prec1", "hyper_parameters"}


def test_a_dense_checkpoint_has_nothing_to_multiply(tmp_path: Path) -> None:
    path = nested(tmp_path)
    with pytest.raises(LrzipError, match="no factorized layers to merge"):
        lrzip.export(path, "dense")


def test_targets_and_suffixes_must_agree(tmp_path: Path) -> None:
    path = nested(tmp_path)
    with pytest.raises(UsageError, match=r"`to=safetensors` does not write \.pt files"):
        lrzip.export(path, "safetensors", tmp_path / "x.pt")
    with pytest.raises(UsageError, match="got tflite"):
        lrzip.export(path, "tflite")


def test_tensors_that_safetensors_cannot_hold_are_named(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.rand(9, 9), "c": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "a.pt")
    with pytest.raises(LrzipError, match=r"no dtype for `c` of `.*`, which is complex128"):
        lrzip.export(tmp_path / "a.pt", "safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_dense_loads_into_the_unchanged_class(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", ratio=2)
    lrzip.export(tmp_path / "a.lrzip.pt", "dense", tmp_path / "dense.pt")
    Net().load_state_dict(torch.load(tmp_path / "dense.pt", weights_only=True))


class Affine(nn.Module):
    """The smallest network that can be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


@pytest.mark.parametrize(
    ("model", "shapes", "message"),
    [
        (None, ["1,8"], "needs `model=PKG.MOD:NET` and `input_shapes="),
        (Affine(), [], "needs `model="),
        (Affine(), ["1,eight"], "takes sizes such as"),
    ],
)
def test_a_program_needs_a_network_and_the_shapes_of_its_inputs(
    model: nn.Module | None, shapes: list[str], message: str, tmp_path: Path
) -> None:
    torch.save(Affine().state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match=message):
        lrzip.export(tmp_path / "a.pt", "pt2", model=model, input_shapes=shapes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    torch.save(seeded(Zoo).state_dict(), folder / "zoo.pt")
    lrzip.compress(folder / "zoo.pt", folder / "small.pt", ratio=2, model=seeded(Zoo))
    return folder / "small.pt"


def test_dense_names_the_layers_that_only_the_network_can_identify(zoo: Path, tmp_path: Path) -> None:
    result = lrzip.export(zoo, "dense", tmp_path / "dense.pt")
    assert {"up", "words", "attention.in_proj"} <= set(result.doubtful)
    assert not set(result.doubtful) & set(result.chains)


@pytest.mark.parametrize("name", ["filter-basis", "depthwise-separable"])
def test_dense_names_depthwise_chains_that_may_be_factors(name: str, tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    lrzip.compress(tmp_path / "net.pt", tmp_path / "small.pt", ratio=2, layers={"conv2": name})
    result = lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "dense.pt")
    assert result.doubtful == ["conv2"]
    assert "conv2" not in result.chains
    assert "conv2" in lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "all.pt", model=Net()).chains


def test_dense_merges_the_factors_of_all_kinds_with_the_network(zoo: Path, tmp_path: Path) -> None:
    result = lrzip.export(zoo, "dense", tmp_path / "dense.pt", model=seeded(Zoo))
    assert result.doubtful == ()
    assert {"up", "words", "grouped"} <= set(result.chains)
    dense = lrzip.load_into(seeded(Zoo), tmp_path / "dense.pt")
    with torch.no_grad():
        expected = lrzip.load_into(seeded(Zoo), zoo)(*Zoo.inputs())
        torch.testing.assert_close(dense(*Zoo.inputs()), expected, rtol=1e-4, atol=1e-5)
