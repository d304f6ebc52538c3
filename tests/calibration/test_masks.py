"""Masks of padded sequences, and networks of transformers that return a cache."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.masks import mask_of, without_cache
from lrzip.calibration.result import Calibration
from lrzip.calibration.settings import DEFAULT_CORRECTIONS
from lrzip.calibration.subjects import Network
from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Arrays, Samples, UserDataset
from tests.support.calibration import layers_of, settings_of
from tests.support.networks import seeded

LENGTH = 6


class Cache:
    """A container that torch.export does not know."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Sequences(nn.Module):
    """A network of two layers for sequences, which takes a mask and returns a cache if its config says so."""

    def __init__(self, *, use_cache: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=use_cache)
        self.embedding, self.first, self.last = nn.Embedding(20, 12), nn.Linear(12, 16), nn.Linear(16, 10)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = torch.relu(self.first(self.embedding(input_ids)))
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        out = self.last(x)
        return (out, Cache(x)) if self.config.use_cache else out


def ids(count: int = 32) -> Tensor:
    return torch.randint(1, 20, (count, LENGTH), generator=torch.Generator().manual_seed(0))


def padded(lengths: Tensor) -> Tensor:
    return (torch.arange(LENGTH) < lengths[:, None]).long()


def calibration_of(x: Tensor, mask: Tensor | None, corrections: str = "none", **others: Any) -> Calibration:
    model = seeded(Sequences).eval()
    named = {} if mask is None else {"attention_mask": mask}
    samples = Samples("data", Arrays(x, None, named=named | others))
    return calibrate(Network(model), samples, layers_of(model), settings_of(corrections))


def test_moments_are_those_of_the_positions_that_a_mask_keeps() -> None:
    x = ids()
    mask = padded(torch.arange(32) % LENGTH + 1)
    found = calibration_of(x, mask).statistics
    model = seeded(Sequences).eval()
    with torch.no_grad():
        embedded = model.get_submodule("embedding")(x)
        hidden = torch.relu(model.get_submodule("first")(embedded))
    for name, values in (("first", embedded), ("last", hidden)):
        rows = values[mask.bool()].double()
        assert found[name].count == len(rows) == int(mask.sum())
        assert torch.allclose(found[name].second[0], rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[name].first[0], rows.mean(0), rtol=1e-4, atol=1e-6)


def test_what_stands_at_hidden_positions_changes_nothing() -> None:
    x = ids()
    mask = padded(torch.arange(32) % LENGTH + 1)
    other = torch.where(mask.bool(), x, 7)
    corrections = "bias,sequential,refit,response"
    results = []
    for tokens in (x, other):
        found = calibration_of(tokens, mask, corrections)
        assert found.run is not None
        model = seeded(Sequences).eval()
        samples = Samples("data", Arrays(tokens, None, named={"attention_mask": mask}))
        settings = settings_of(corrections)
        small = lrzip.factorize(model, rank=3, skip=["embedding"], calibrate=samples, calibration=settings)
        results.append((found, small.state_dict()))
    (one, first), (two, second) = results
    for name in one.statistics:
        assert one.statistics[name].fisher == pytest.approx(two.statistics[name].fisher, rel=1e-5)
        assert torch.allclose(one.statistics[name].second, two.statistics[name].second, atol=1e-6)
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-4), name


def test_a_mask_that_hides_everything_is_refused() -> None:
    with pytest.raises(LrzipError, match="`attention_mask` of `data` hides every position"):
        calibration_of(ids(), torch.zeros(32, LENGTH).long())


def test_arrays_that_the_network_does_not_take_are_named() -> None:
    assert calibration_of(ids(), None, token_type=ids()).remarks == [
        "Ignored, since the network has no inputs of these names: `token_type`"
    ]


def test_only_masks_of_two_axes_count() -> None:
    mask = padded(torch.tensor([1, 6]))
    assert torch.equal(mask_of(((), {"attention_mask": mask}), []), mask.bool())  # type: ignore[arg-type]
    assert torch.equal(mask_of((("x", mask), {}), ["input_ids", "attention_mask"]), mask.bool())  # type: ignore[arg-type]
    for other in (torch.ones(2, 6).long(), torch.zeros(2, 6), torch.zeros(2, 1, 6, 6).long(), None):
        assert mask_of(((), {"attention_mask": other}), []) is None


def test_a_cache_does_not_turn_corrections_off() -> None:
    model = Sequences(use_cache=True).eval()
    found = calibrate(Network(model), ids(), layers_of(model), settings_of("bias,sequential"))
    assert (found.run is not None, found.remarks, model.config.use_cache) == (True, [], True)
    with without_cache(model):
        assert not model.config.use_cache
    assert model.config.use_cache


class Branching(nn.Module):
    """A network that torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x))
        return out if float(out.sum()) > 0 else -out


def test_corrections_that_are_impossible_have_a_reason() -> None:
    model, x = Branching().eval(), torch.randn(40, 12)
    settings = settings_of("none")
    object.__setattr__(settings, "corrections", None)
    found = calibrate(Network(model), x, layers_of(model), settings)
    assert found.run is None
    (remark,) = found.remarks
    assert remark.startswith("No corrections: torch.export cannot follow the network: ")
    assert remark.isprintable()
    assert DEFAULT_CORRECTIONS.bias


class Ragged:
    """A dataset of samples of different lengths."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(3 + index % 2, dtype=torch.long)


class Failing(Ragged):
    """A dataset whose items cannot be read."""

    def __getitem__(self, index: int) -> Tensor:
        raise KeyError(index)


@pytest.mark.parametrize(("dataset", "message"), [(Ragged(), "make no batch: "), (Failing(), "cannot be read: KeyErr")])
def test_data_sets_without_batches_are_refused_in_one_line(dataset: Any, message: str) -> None:
    model = seeded(Sequences).eval()
    with pytest.raises(LrzipError, match=message) as caught:
        calibrate(Network(model), Samples("data", UserDataset(dataset, None)), layers_of(model), settings_of("none"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("first", ["x", "tokens"])
def test_onnx_models_take_several_inputs_by_name(first: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = numpy_helper.from_array(generator.standard_normal((12, 16), np.float32), "w")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 12]) for name in ("tokens", "scale")]
    nodes = [helper.make_node("Mul", ["tokens", "scale"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["out"])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 16])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    arrays: dict[str, Any] = {
        first: generator.standard_normal((40, 12), np.float32),
        "scale": np.full((40, 12), 2, np.float32),
    }
    np.savez(tmp_path / "d.npz", **arrays)
    report = lrzip.compress(tmp_path / "m.onnx", tmp_path / "s.onnx", rank=3, calibrate=tmp_path / "d.npz")
    assert report.results[0].output_error is not None
    assert report.calibrated is not None
    assert report.calibrated.count == 40
