"""What is seen in onnxruntime is what is seen in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lrzip
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.statistics import moments_of
from lrzip.calibration.subjects import Stored
from lrzip.core.errors import LrzipError
from lrzip.core.layers import Layer
from lrzip.core.moments import Moments
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Observable
from lrzip.linalg.whitening import DAMPING
from tests.support import graphs

CASES = {
    "Conv": (graphs.conv((12, 6, 3, 3), (9, 10), pads=[1, 0, 2, 1], strides=[1, 2], dilations=[2, 1]), (2, 6, 9, 10)),
    "grouped": (graphs.conv((12, 6, 3, 3), (9, 10), groups=2, pads=[1, 1, 1, 1]), (2, 12, 9, 10)),
    "SAME_UPPER": (graphs.conv((12, 6, 4, 3), (9, 10), auto_pad="SAME_UPPER", strides=[2, 1]), (2, 6, 9, 10)),
    "SAME_LOWER": (graphs.conv((12, 6, 4, 3), (9, 10), auto_pad="SAME_LOWER", strides=[1, 2]), (2, 6, 9, 10)),
    "Gemm": (graphs.gemm((12, 20), (20,)), (30, 12)),
    "Gemm-transB": (graphs.gemm((20, 12), (20,), transB=1), (30, 12)),
    "MatMul": (graphs.matmul((12, 20), ["batch", 5, 12]), (3, 5, 12)),
    "MatMul-left": (graphs.matmul((20, 12), ["batch", 12, 5], left=True), (3, 12, 5)),
}


EXAMPLES = CalibrationSettings(samples=4000)


def seen_in(path: Path, x: torch.Tensor) -> tuple[Layer, Moments]:
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint, Observable)
        (layer,) = (item for item in checkpoint.layers() if isinstance(item, Layer))
        return layer, moments_of(Stored(checkpoint), [layer], [((x,), {})], 1 << 20)[layer.name]


@pytest.mark.parametrize(("model", "size"), CASES.values(), ids=CASES)
def test_moments_predict_the_norm_of_outputs(model: Any, size: tuple[int, ...], tmp_path: Path) -> None:
    path = graphs.save(model, tmp_path / "model.onnx")
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    layer, seen = seen_in(path, x)
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    bias = tensors.pop("layer.bias", torch.zeros(1)).double()
    weight = tensors[layer.weight.name].double()
    matrices = weight.mT if layer.kind.inputs_first else weight.flatten(1)
    stacked = matrices.reshape(layer.groups, -1, layer.input_size)
    predicted = seen.count * float(torch.einsum("gmn,gnk,gmk->", stacked, seen.second, stacked))
    (outputs,) = graphs.run(path, {"x": x.numpy()}).values()
    axis = layer.kind.channel_axis
    without = torch.from_numpy(np.array(outputs)).double().movedim(axis, -1) - bias
    assert predicted == pytest.approx(float(without.square().sum()), rel=1e-4)  # of sums in float32


def test_the_channels_of_transposed_convolutions_are_observed(tmp_path: Path) -> None:
    path = graphs.save(graphs.conv((6, 12, 3, 3), (5, 6), kind="ConvTranspose"), tmp_path / "model.onnx")
    x = torch.randn(2, 6, 5, 6)
    _, seen = seen_in(path, x)
    rows = x.movedim(1, -1).reshape(-1, 6).double()
    assert torch.allclose(seen.second[0], rows.mT @ rows / len(rows), atol=1e-5)


def chain(batch: int | str) -> Any:
    tensors = {"a.weight": graphs.weight(24, 20), "b.weight": graphs.weight(20, 16, seed=1)}
    nodes = [
        graphs.node("MatMul", "x a.weight", "h"),
        graphs.node("Relu", "h", "r"),
        graphs.node("MatMul", "r b.weight"),
    ]
    return graphs.model(nodes, {"x": [batch, 24]}, {"y": 2}, tensors)


def low_rank(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, generator=generator) @ torch.randn(4, 24, generator=generator)


@pytest.mark.parametrize("batch", ["batch", 1, 5])
def test_a_calibrated_model_is_nearer_on_its_inputs(tmp_path: Path, batch: int | str) -> None:
    """Inputs of rank 4 take no more than rank 4 of the first layer."""
    path = graphs.save(chain(batch), tmp_path / "model.onnx")
    x = low_rank(4000)
    lrzip.compress(path, tmp_path / "plain.onnx", layers={"b": "keep"}, rank=4)
    report = lrzip.compress(
        path, tmp_path / "small.onnx", layers={"b": "keep"}, rank=4, calibrate=x, calibration=EXAMPLES
    )
    feed = {"x": x[: batch if isinstance(batch, int) else 4000].numpy()}
    dense, plain, small = (graphs.run(tmp_path / f"{n}.onnx", feed)["y"] for n in ("model", "plain", "small"))
    # The damping gives directions without inputs a hundredth of the mean: the error they cause stays in that order.
    assert np.linalg.norm(small - dense) < 0.1 * np.linalg.norm(plain - dense)
    assert report.calibrated
    assert report.calibrated.corrections == "none"
    assert report.results[0].output_error is not None
    assert report.results[0].output_error < (DAMPING + 24 / 4000) ** 0.5


def test_a_budget_is_spent_where_inputs_are(tmp_path: Path) -> None:
    path = graphs.save(chain("batch"), tmp_path / "model.onnx")
    report = lrzip.compress(
        path, tmp_path / "small.onnx", budget="params=60%", calibrate=low_rank(4000), calibration=EXAMPLES, round_to=1
    )
    ranks = {decision.layer.name: decision.ranks[0] for decision in report.plan.factorize}
    assert ranks["a"] >= 4


def test_corrections_are_refused(tmp_path: Path) -> None:
    path = graphs.save(chain("batch"), tmp_path / "model.onnx")
    with pytest.raises(LrzipError, match="`correct` is for networks"):
        lrzip.compress(
            path, rank=4, calibrate=low_rank(4000), calibration=CalibrationSettings(corrections=Corrections(bias=True))
        )


def test_measurements_are_refused(tmp_path: Path) -> None:
    path = graphs.save(chain("batch"), tmp_path / "model.onnx")
    with pytest.raises(LrzipError, match="`objective=sensitivity` is for networks"):
        lrzip.compress(path, budget="params=70%", objective="sensitivity", calibrate=low_rank(4000), dry_run=True)


def test_other_inputs_are_named(tmp_path: Path) -> None:
    path = graphs.save(chain("batch"), tmp_path / "model.onnx")
    with pytest.raises(LrzipError, match=r"does not take the inputs of `the calibration data`, float32 \(7,\)"):
        lrzip.compress(path, rank=4, calibrate=torch.randn(40, 7))
