"""Calibration: what is seen of layers, and what factors make up for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.result import Calibration
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.statistics import moments_of
from lrzip.calibration.subjects import Network
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments
from lrzip.decompositions import DECOMPOSITIONS
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.networks.programs.observe import observe_program
from lrzip.networks.programs.trace import export_network
from tests.support.networks import Net, ResNet, Zoo, seeded
from tests.support.tasks import Deep

NAMES = pytest.mark.parametrize("name", DECOMPOSITIONS)


def layers_of(model: nn.Module) -> list[Layer]:
    found = LiveSource(model).layers(Architecture.of(model))
    return [item for item in found if isinstance(item, Layer)]


def resnet(blocks: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(blocks).eval()


def images(count: int = 48, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms the statistics of inputs, as training would."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x)
    return model.eval()


def settings(corrections: str, samples: int = 1024, memory: int = 1 << 30) -> CalibrationSettings:
    return CalibrationSettings(samples, 16, Corrections.parse(corrections), memory=memory)


def looked(model: nn.Module, x: Tensor, corrections: str = "none", **options: int) -> Calibration:
    return calibrate(Network(model), x, layers_of(model), settings(corrections, **options))


def test_hooks_and_the_graph_see_the_same() -> None:
    model = seeded(Zoo).eval()
    batch: Arguments = (Zoo.inputs(4), {})
    layers = layers_of(model)
    by_hooks = moments_of(Network(model), layers, [batch], 1 << 20)
    program = export_network(model, *batch)

    class Graph(Network):
        def observe(self, layers, batches, observer) -> None:  # type: ignore[no-untyped-def]
            observe_program(program, {self.weight_name(layer): layer for layer in layers}, batches, observer)

    by_graph = moments_of(Graph(model), layers, [batch], 1 << 20)
    assert set(by_hooks) == set(by_graph) == {"stem", "grouped", "up", "words", "attention.in_proj", "mix", "head"}
    for name, seen in by_hooks.items():
        assert seen.count == by_graph[name].count
        assert torch.allclose(seen.second, by_graph[name].second, rtol=1e-4, atol=1e-6)  # other orders of float32 sums


def test_moments_are_those_of_what_a_layer_gets() -> None:
    model, x = seeded(Net).eval(), torch.randn(20, 3, 16, 16)
    seen = looked(model, x, samples=16)
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:16]
    given: list[Tensor] = []
    handle = model.get_submodule("fc1").register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        model(x[chosen])
    handle.remove()
    rows = given[0].double()
    assert torch.allclose(seen.statistics["fc1"].second[0], rows.mT @ rows / 16, atol=1e-5)
    assert seen.count == 16
    assert seen.scarce["fc1"] == (16, 24 * 8 * 3)


def test_memory_makes_passes_and_nothing_else() -> None:
    model, x = seeded(Net).eval(), torch.randn(16, 3, 16, 16)
    at_once, in_passes = looked(model, x), looked(model, x, memory=1)
    for name, moments in at_once.statistics.items():
        assert torch.equal(moments.second, in_passes.statistics[name].second)


def error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected, found = model(x), small(x)
    return float((found - expected).norm() / expected.norm())


def test_factors_are_the_best_of_their_rank_on_the_inputs() -> None:
    model = nn.Sequential(nn.Linear(20, 30)).eval()
    mixing = torch.randn(20, 20, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, 20)
    x = torch.randn(400, 20, generator=torch.Generator().manual_seed(2)) @ mixing.mT
    options = CalibrationSettings(corrections=Corrections())
    small = lrzip.factorize(model, rank=4, calibrate=x, calibration=options)
    outputs = x @ model.get_parameter("0.weight").detach().mT
    optimum = float(torch.linalg.svdvals(outputs)[4:].norm() / outputs.norm())
    missed = float(((small(x) - model(x)).norm() / outputs.norm()).detach())
    # The damping takes a hundredth of the mean second moment for inputs in all directions.
    assert optimum * (1 - 1e-4) <= missed <= 1.05 * optimum
    assert error(model, lrzip.factorize(model, rank=4), x) > 2 * missed


def test_tucker_factors_are_nearest_on_the_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False)).eval()
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, 12)
    x = torch.einsum("nchw,dc->ndhw", torch.randn(64, 12, 8, 8, generator=torch.Generator().manual_seed(2)), mixing)
    options: Any = {"decomposition": "tucker", "rank": 4}
    how = CalibrationSettings(corrections=Corrections())
    missed = error(model, lrzip.factorize(model, **options, calibrate=x, calibration=how), x)
    assert missed < error(model, lrzip.factorize(model, **options), x)
    patches = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    outputs = patches @ model.get_parameter("0.weight").detach().flatten(1).mT
    assert missed > float(torch.linalg.svdvals(outputs)[4:].norm() / outputs.norm()) * (1 - 1e-4)


def test_inputs_with_a_large_mean_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1)).eval()
    x = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 3000
    how = CalibrationSettings(corrections=Corrections(bias=True))
    small = lrzip.factorize(model, rank=4, decomposition="tucker", calibrate=x, calibration=how)
    assert error(model, small, x) < error(model, lrzip.factorize(model, rank=4, decomposition="tucker"), x)


@NAMES
def test_at_full_rank_nothing_changes(name: str) -> None:
    x = images()
    model = trained(resnet(1), x)
    options: Any = {"decomposition": name, "energy": 1.0}
    small = lrzip.factorize(model, **options, calibrate=x, calibration=settings("bias,sequential,residual,refit"))
    # Whole layers are fitted to what they put out already; float64 solutions, rounded to float32.
    assert error(model, small, x) < 1e-4


@NAMES
def test_corrections_bring_outputs_nearer(name: str) -> None:
    x = images(96)
    model = trained(resnet(2), x)
    kinds = ["none", "bias,sequential", "bias,sequential,residual", "bias,sequential,residual,refit"]
    options: Any = {"decomposition": name, "ratio": 3}
    errors = [
        error(model, lrzip.factorize(model, **options, calibrate=x, calibration=settings(kind)), x) for kind in kinds
    ]
    plain = error(model, lrzip.factorize(model, **options), x)
    assert errors[0] < plain
    assert errors == sorted(errors, reverse=True)


def test_means_are_kept() -> None:
    """Of a linear network every mean is right if each layer's is."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20), nn.Linear(20, 8)).eval()
    x = torch.rand(256, 20, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        for corrections in ("bias", "bias,sequential"):
            small = lrzip.factorize(model, rank=3, calibrate=x, calibration=settings(corrections))
            assert torch.allclose(small(x).mean(0), model(x).mean(0), atol=1e-5)
        without = lrzip.factorize(model, rank=3, calibrate=x, calibration=settings("none"))
        assert not torch.allclose(without(x).mean(0), model(x).mean(0), atol=1e-5)


def test_a_norm_of_other_channels_is_left_alone() -> None:
    """Of (examples, steps, features), a linear layer makes features, and a batch norm counts steps."""
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(5), nn.ReLU()).eval()
    x = torch.rand(64, 5, 12, generator=torch.Generator().manual_seed(0)) + 1
    how = settings("bias,sequential,residual,refit,response")
    small = lrzip.factorize(model, rank=2, calibrate=x, calibration=how)
    assert error(model, small, x) < error(model, lrzip.factorize(model, rank=2), x)
    assert torch.equal(small.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def test_a_reconstruction_brings_outputs_nearer() -> None:
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    model = seeded(Deep).eval()
    how = settings("bias,sequential")
    before, after = (
        lrzip.factorize(model, rank=4, calibrate=x, calibration=replace(how, reconstruct=steps)) for steps in (0, 200)
    )
    assert error(model, after, x) < 0.9 * error(model, before, x)


class Branches(nn.Module):
    """Two layers whose outputs are added, each of which could wait for the other, and one that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = self.first(x)
        total += self.second(x)
        out: Tensor = self.last(torch.relu_(total))
        return out


def test_branches_that_are_added_make_up_for_each_other() -> None:
    model = seeded(Branches).eval()
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    alone = lrzip.factorize(model, rank=2, only=["first", "second"], calibrate=x, calibration=settings("sequential"))
    both = lrzip.factorize(
        model, rank=2, only=["first", "second"], calibrate=x, calibration=settings("sequential,residual")
    )
    # Together they have rank 4 of what their sum takes, in place of twice rank 2.
    assert error(model, both, x) < 0.9 * error(model, alone, x)


def test_layers_that_the_examples_do_not_reach_stay_whole() -> None:
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


def test_what_is_left_out_by_name_is_not_changed() -> None:
    x = images()
    model = trained(resnet(1), x)
    small = lrzip.factorize(
        model, ratio=2, skip=["linear"], calibrate=x, calibration=settings("bias,sequential,residual,refit")
    )
    assert torch.equal(small.get_parameter("linear.weight"), model.get_parameter("linear.weight"))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    x = images()
    model = trained(resnet(1), x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    outputs = [tmp_path / name for name in ("a.pt", "b.pt")]
    for output in outputs:
        lrzip.compress(
            tmp_path / "model.pt",
            output,
            ratio=2,
            model=ResNet(1),
            calibrate=x,
            calibration=settings("bias,sequential"),
        )
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@NAMES
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_gets_what_a_live_network_gets(tmp_path: Path, suffix: str, name: str) -> None:
    x = images()
    model = trained(resnet(1), x)
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "model.pt")
    report = lrzip.compress(
        tmp_path / "model.pt",
        tmp_path / f"small.{suffix}",
        budget="params=50%",
        decomposition=name,
        model=ResNet(1),
        calibrate=x,
        calibration=settings("bias,sequential,residual,refit"),
    )
    small = lrzip.load_into(ResNet(1), tmp_path / f"small.{suffix}").eval()
    how = settings("bias,sequential,residual,refit")
    live = lrzip.factorize(model, budget="params=50%", decomposition=name, calibrate=x, calibration=how)
    with torch.no_grad():
        assert torch.equal(small(x), live(x))
    assert report.calibrated
    assert "module.bn1.running_mean" in report.calibrated.changed
    assert report.calibrated.count == 48
    assert report.plan.budget
    assert report.plan.budget.objective == "fisher"
    for result in report.results:
        assert result.output_error is not None
        assert 0 < result.output_error < result.error


def test_a_plan_is_followed(tmp_path: Path) -> None:
    x = images()
    model = trained(resnet(1), x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    how = settings("bias,sequential")
    planned = lrzip.compress(
        tmp_path / "model.pt", budget="params=50%", dry_run=True, model=ResNet(1), calibrate=x, calibration=how
    )
    (tmp_path / "plan.json").write_text(json.dumps(planned.plan.to_dict()))
    report = lrzip.compress(
        tmp_path / "model.pt",
        tmp_path / "small.pt",
        plan=tmp_path / "plan.json",
        model=ResNet(1),
        calibrate=x,
        calibration=how,
    )
    assert report.plan.factorize == planned.plan.factorize
    assert report.calibrated


def test_what_was_seen_is_kept_and_used_without_the_network(tmp_path: Path) -> None:
    x = images()
    model = trained(resnet(1), x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    kept = tmp_path / "seen.safetensors"
    how = CalibrationSettings(corrections=Corrections(), save=kept)
    outputs = [tmp_path / name for name in ("a.pt", "b.pt")]
    lrzip.compress(tmp_path / "model.pt", outputs[0], ratio=2, model=ResNet(1), calibrate=x, calibration=how)
    report = lrzip.compress(tmp_path / "model.pt", outputs[1], ratio=2, calibrate=kept)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert report.calibrated
    assert report.calibrated.examples == str(kept)
    measured = CalibrationSettings(corrections=Corrections(), save=tmp_path / "measured.safetensors")
    sensitive: Any = {"budget": "params=50%", "objective": "sensitivity", "dry_run": True}
    lrzip.compress(tmp_path / "model.pt", **sensitive, model=ResNet(1), calibrate=x, calibration=measured)
    options: Any = {"energy": 0.8, "decomposition": "tucker", "dry_run": True}
    assert lrzip.compress(tmp_path / "model.pt", **options, calibrate=measured.save).plan.factorize
    curve = lrzip.curve(tmp_path / "model.pt", "params=40%,60%", calibrate=kept)
    assert [point.plan.budget.objective for point in curve.points if point.plan.budget] == ["fisher"] * 2


def test_what_another_network_saw_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "seen.safetensors"
    torch.save(nn.Sequential(nn.Linear(12, 20)).state_dict(), tmp_path / "model.pt")
    torch.save(nn.Sequential(nn.Linear(16, 20)).state_dict(), tmp_path / "other.pt")
    options = CalibrationSettings(save=kept)
    model = nn.Sequential(nn.Linear(12, 20))
    lrzip.compress(
        tmp_path / "model.pt", rank=2, model=model, calibrate=torch.randn(9, 12), calibration=options, dry_run=True
    )
    with pytest.raises(LrzipError, match=r"`0` has .* 12.* in it and .* 16.* here"):
        lrzip.compress(tmp_path / "other.pt", rank=2, calibrate=kept)
    with pytest.raises(UsageError, match="nothing to run"):
        lrzip.compress(tmp_path / "model.pt", rank=2, calibrate=kept, calibration=settings("bias"))


BAD = {
    "shape": (torch.rand(40, 3, 5), "does not take the inputs of `the calibration data`, float32 (3, 5)"),
    "NaN": (torch.full((40, 3, 16, 16), float("nan")), "gets NaN or Inf on `the calibration data`"),
    "indices": (torch.ones(40, 7, dtype=torch.int64), "does not take the inputs of `the calibration data`, int64 (7,)"),
}


@pytest.mark.parametrize(("x", "said"), BAD.values(), ids=BAD)
def test_bad_examples_are_named(x: Tensor, said: str) -> None:
    with pytest.raises(LrzipError) as caught:
        lrzip.factorize(resnet(1), ratio=2, calibrate=x)
    assert said in str(caught.value)


def test_labels_alone_are_no_examples(tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", y=np.arange(10))
    with pytest.raises(LrzipError, match="has no array `x`"):
        lrzip.factorize(resnet(1), ratio=2, calibrate=str(tmp_path / "labels.npz"))


def test_weights_alone_cannot_be_run(tmp_path: Path) -> None:
    torch.save(ResNet(1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="holds only weights"):
        lrzip.compress(tmp_path / "model.pt", ratio=2, calibrate=images())


def test_how_to_calibrate_needs_examples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without calibration data"):
        lrzip.compress(tmp_path / "model.pt", ratio=2, calibration=CalibrationSettings())


@pytest.mark.parametrize("text", ["bias,biases", "residual", "refit,bias", ""])
def test_corrections_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="`--correct`"):
        Corrections.parse(text)


def test_corrections_are_written_as_they_are_read() -> None:
    for text in ("none", "bias", "bias,sequential,refit"):
        assert str(Corrections.parse(text)) == text


@pytest.mark.parametrize("batch", [4, 16])
def test_a_program_gets_what_its_network_gets(batch: int, tmp_path: Path) -> None:
    x = images(32)
    model = trained(resnet(1), x)
    torch.export.save(torch.export.export(model, (x[:batch],)), tmp_path / "model.pt2")
    how = settings("bias,sequential,residual,refit")
    report = lrzip.compress(
        tmp_path / "model.pt2", tmp_path / "small.pt2", ratio=2, calibrate=x, calibration=how, trust=True
    )
    live = lrzip.factorize(model, ratio=2, calibrate=x, calibration=how)
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    assert report.calibrated
    assert "bn1.running_mean" in report.calibrated.changed
    with torch.no_grad():
        # Of batches of other sizes float32 sums differ.
        assert error(live, loaded, x[:batch]) < 1e-3
