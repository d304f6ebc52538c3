import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.subjects import Network
from lrzip.core.errors import LrzipError, UsageError
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION
from tests.support.calibration import calibration_of, images, layers_of, relative_error, resnet, settings_of
from tests.support.networks import Net, ResNet, seeded

NAMES = pytest.mark.parametrize("name", DECOMPOSITIONS)
PLAIN = CalibrationSettings(corrections=Corrections())


def correlated(count: int, size: int, decay: float) -> Tensor:
    """Return inputs (count, size) whose second moment has eigenvalues over `decay` orders of magnitude."""
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -decay, size)
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2)) @ mixing.mT


def test_factors_are_the_best_of_their_rank_on_the_inputs() -> None:
    model = nn.Sequential(nn.Linear(20, 30)).eval()
    x = correlated(400, 20, 3)
    small = lrzip.factorize(model, rank=4, calibrate=x, calibration=PLAIN)
    outputs = x @ model.get_parameter("0.weight").detach().mT
    optimum = float(torch.linalg.svdvals(outputs)[4:].norm() / outputs.norm())
    missed = float(((small(x) - model(x)).norm() / outputs.norm()).detach())
    # The damping adds a hundredth of the mean second moment in all directions.
    assert optimum * (1 - 1e-4) <= missed <= 1.05 * optimum
    assert relative_error(model, lrzip.factorize(model, rank=4), x) > 2 * missed


@pytest.mark.parametrize("layer", [nn.Linear(20, 30), nn.Conv2d(6, 16, 3, padding=1)])
def test_calibrated_factors_are_balanced(layer: nn.Module) -> None:
    """The Gram matrices of both factors are the same diagonal matrix, so that half precision keeps most bits."""
    x = correlated(400, 20, 3) if isinstance(layer, nn.Linear) else torch.rand(20, 6, 8, 8)
    small = lrzip.factorize(nn.Sequential(layer).eval(), rank=4, calibrate=x, calibration=PLAIN)
    right, left = (small.get_parameter(f"0.{stage}.weight").detach().flatten(1).double() for stage in (0, 1))
    inner, outer = right @ right.mT, left.mT @ left
    scale = float(inner.diagonal().max())
    # Computed in float64 and rounded to float32: 6e-8 each, over up to 54 products.
    assert torch.allclose(inner, outer, atol=1e-5 * scale)
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "layer"),
    [(DEFAULT_DECOMPOSITION, nn.Linear(20, 30)), *((name, nn.Conv2d(6, 12, 3, padding=1)) for name in DECOMPOSITIONS)],
)
def test_the_output_error_is_that_on_the_samples(name: str, layer: nn.Module, tmp_path: Path) -> None:
    """‖(W − W′)X‖ / ‖WX‖ of the stored factors: damping is part of what they minimize, not of their error."""
    model = nn.Sequential(layer).eval()
    x = correlated(256, 20, 2) if isinstance(layer, nn.Linear) else torch.rand(128, 6, 5, 5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    options: Any = {"rank": 3, "decomposition": name, "model": model, "calibrate": x, "calibration": PLAIN}
    report = lrzip.compress(tmp_path / "model.pt", tmp_path / "small.pt", **options)
    lrzip.export(tmp_path / "small.pt", "dense", tmp_path / "dense.pt", model=nn.Sequential(copy.deepcopy(layer)))
    weight = model.get_parameter("0.weight").detach().flatten(1).double()
    missed = weight - torch.load(tmp_path / "dense.pt")["0.weight"].flatten(1).double()
    rows = x if isinstance(layer, nn.Linear) else nn.functional.unfold(x, 3, padding=1).mT.flatten(0, 1)
    outputs = [float((rows.double() @ matrix.mT).norm()) for matrix in (missed, weight)]
    assert len(report.results) == 1
    # Moments are summed in float32.
    assert report.results[0].output_error == pytest.approx(outputs[0] / outputs[1], rel=1e-4)


def test_tucker_factors_are_better_on_the_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False)).eval()
    x = correlated(64 * 64, 12, 2).reshape(64, 8, 8, 12).permute(0, 3, 1, 2)
    options: Any = {"decomposition": "tucker", "rank": 4}
    missed = relative_error(model, lrzip.factorize(model, **options, calibrate=x, calibration=PLAIN), x)
    assert missed < relative_error(model, lrzip.factorize(model, **options), x)
    patches = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    outputs = patches @ model.get_parameter("0.weight").detach().flatten(1).mT
    assert missed > float(torch.linalg.svdvals(outputs)[4:].norm() / outputs.norm()) * (1 - 1e-4)


def test_inputs_with_a_large_mean_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1)).eval()
    x = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 3000
    settings = CalibrationSettings(corrections=Corrections(bias=True))
    small = lrzip.factorize(model, rank=4, decomposition="tucker", calibrate=x, calibration=settings)
    plain = lrzip.factorize(model, rank=4, decomposition="tucker")
    assert relative_error(model, small, x) < relative_error(model, plain, x)


def test_samples_are_those_of_the_seed() -> None:
    model, x = seeded(Net).eval(), torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    calibration = calibration_of(model, x, samples=16)
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:16]
    expected = calibration_of(model, x[chosen])
    assert calibration.count == expected.count == 16
    for name in ("conv1", "fc2"):
        # The order of the samples, and with it that of float32 sums, differs.
        found, other = calibration.statistics[name].second, expected.statistics[name].second
        assert torch.allclose(found, other, rtol=1e-4, atol=1e-6)


def test_layers_that_the_data_does_not_reach_stay_dense() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    small = lrzip.factorize(Idle().eval(), rank=2, calibrate=torch.randn(50, 12))
    assert isinstance(small.get_submodule("idle"), nn.Linear)
    assert isinstance(small.get_submodule("used"), nn.Sequential)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    x = images()
    model = resnet(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    outputs = [tmp_path / name for name in ("a.pt", "b.pt")]
    for output in outputs:
        lrzip.compress(
            tmp_path / "model.pt",
            output,
            ratio=2,
            model=ResNet(1),
            calibrate=x,
            calibration=settings_of("bias,sequential"),
        )
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@NAMES
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_gets_the_factors_of_the_live_network(tmp_path: Path, suffix: str, name: str) -> None:
    x = images()
    model = resnet(x)
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "model.pt")
    settings = settings_of("bias,sequential,residual,refit")
    report = lrzip.compress(
        tmp_path / "model.pt",
        tmp_path / f"small.{suffix}",
        budget="params=50%",
        decomposition=name,
        model=ResNet(1),
        calibrate=x,
        calibration=settings,
    )
    small = lrzip.load_into(ResNet(1), tmp_path / f"small.{suffix}").eval()
    live = lrzip.factorize(model, budget="params=50%", decomposition=name, calibrate=x, calibration=settings)
    with torch.no_grad():
        assert torch.equal(small(x), live(x))
    assert report.calibrated
    assert "module.bn1.running_mean" in report.calibrated.changed
    assert report.calibrated.count == 48
    assert report.plan.budget
    assert report.plan.budget.objective == "fisher"
    assert len(report.results) >= 3
    for result in report.results:
        assert result.output_error is not None
        assert 0 < result.output_error < result.error


@pytest.mark.parametrize("batch", [4, 16])
def test_a_program_gets_the_factors_of_its_network(batch: int, tmp_path: Path) -> None:
    x = images(32)
    model = resnet(x)
    torch.export.save(torch.export.export(model, (x[:batch],)), tmp_path / "model.pt2")
    settings = settings_of("bias,sequential,residual,refit")
    report = lrzip.compress(
        tmp_path / "model.pt2", tmp_path / "small.pt2", ratio=2, calibrate=x, calibration=settings, trust=True
    )
    live = lrzip.factorize(model, ratio=2, calibrate=x, calibration=settings)
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    assert report.calibrated
    assert "bn1.running_mean" in report.calibrated.changed
    # Float32 sums over batches of other sizes differ.
    assert relative_error(live, loaded, x[:batch]) < 1e-3


def test_a_plan_is_followed(tmp_path: Path) -> None:
    x = images()
    model = resnet(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    options: Any = {"model": ResNet(1), "calibrate": x, "calibration": settings_of("bias,sequential")}
    planned = lrzip.compress(tmp_path / "model.pt", budget="params=50%", dry_run=True, **options)
    (tmp_path / "plan.json").write_text(json.dumps(planned.plan.to_dict()))
    report = lrzip.compress(tmp_path / "model.pt", tmp_path / "small.pt", plan=tmp_path / "plan.json", **options)
    assert report.plan.factorize == planned.plan.factorize
    assert report.calibrated


BAD = {
    "shape": (torch.rand(40, 3, 5), "does not take the inputs of `the calibration data`, float32 (3, 5)"),
    "NaN": (torch.full((40, 3, 16, 16), float("nan")), "gets NaN or Inf on `the calibration data`"),
    "indices": (
        torch.ones(40, 7, dtype=torch.int64),
        "does not take the inputs of `the calibration data`, int64 (7,)",
    ),
}


@pytest.mark.parametrize(("x", "said"), BAD.values(), ids=BAD)
def test_unusable_inputs_are_named(x: Tensor, said: str) -> None:
    with pytest.raises(LrzipError) as caught:
        lrzip.factorize(ResNet(1).eval(), ratio=2, calibrate=x)
    assert said in str(caught.value)


class Branching(nn.Module):
    """Depends on the values of its inputs, which torch.export cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) if float(x.sum()) > 0 else self.layer(-x)
        return out


def test_a_network_that_cannot_be_traced_is_calibrated_without_corrections() -> None:
    calibration = calibrate(Network(Branching().eval()), torch.rand(40, 12), layers_of(Branching()), PLAIN)
    assert calibration.corrections == Corrections()
    assert calibration.run is None
    assert calibration.statistics["layer"].fisher is None
    with pytest.raises(LrzipError, match=r"torch\.export"):
        calibration_of(Branching().eval(), torch.rand(40, 12), "bias")


def test_corrections_need_a_program_of_torch() -> None:
    class Uncorrectable(Network):
        correctable = False

    model = nn.Sequential(nn.Linear(12, 12)).eval()
    for settings, measured, message in (
        (settings_of("bias"), False, "`correct` is for networks"),
        (PLAIN, True, "`objective=sensitivity` is for networks"),
    ):
        with pytest.raises(UsageError, match=message):
            calibrate(Uncorrectable(model), torch.rand(40, 12), layers_of(model), settings, measured=measured)


def test_weights_alone_cannot_be_run(tmp_path: Path) -> None:
    torch.save(ResNet(1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="holds only weights"):
        lrzip.compress(tmp_path / "model.pt", ratio=2, calibrate=images())


def test_settings_need_calibration_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without calibration data"):
        lrzip.compress(tmp_path / "model.pt", ratio=2, calibration=CalibrationSettings())
