"""Multiply-accumulates are those that are executed; times are there, whatever they are."""

import json
import warnings
from math import prod
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lrzip
from lrzip.core.costs import Latency
from lrzip.core.decisions import Factorize
from lrzip.core.errors import LrzipError, UntrustedFile, UsageError
from lrzip.core.layers import Layer
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.profile import profile
from tests.support.networks import Net, ResNet, Zoo, seeded
from tests.support.schemas import ANALYZE, COMPRESS
from tests.support.shell import error_of, run

SHAPES = ("2,3,12,12", "2,5:int64")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    torch.save(seeded(Zoo).state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


def macs(model: nn.Module) -> int:
    """Return what torch counts, and what the LSTM and the attention of a Zoo multiply in fused operators."""
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*Zoo.inputs())
    torch.backends.mha.set_fastpath_enabled(True)
    lstm, attention = 2 * 5 * (64 * 16 + 64 * 16), 2 * (2 * 5 * 5 * 16)
    return int(counter.get_total_flops()) // 2 + lstm + attention


def test_resnet_20_has_the_published_multiply_accumulates() -> None:
    assert profile(seeded(ResNet), ["1,3,32,32"]).run.macs == 40_551_040  # 40.6 M (He et al. 2016)
    assert profile(seeded(ResNet), ["4,3,32,32"]).run.macs == 4 * 40_551_040


def test_costs_follow_from_the_definitions_of_layers() -> None:
    model = seeded(Zoo)
    found = profile(model, SHAPES)
    layers = {item.name: item for item in LiveSource(model).layers(Architecture.of(model)) if isinstance(item, Layer)}
    cost = {name: found.macs_of(layer) for name, layer in layers.items()}
    assert cost == {
        "stem": 2 * 12 * 12 * 24 * 3 * 9,
        "grouped": 2 * 6 * 6 * 32 * 6 * 9,
        "up": 2 * 6 * 6 * 32 * 16 * 4,
        "mix": 2 * 5 * 16 * 16,
        "words": 0,
        "attention.in_proj": 2 * 5 * 3 * 16 * 16,
        "head": 2 * 5 * 16 * 16,
    }
    assert found.run.macs == macs(model)


def test_factorized_costs_are_those_of_the_factorized_network(zoo: Path) -> None:
    report = lrzip.compress(zoo, zoo.with_name("small.pt"), ratio=2, model=seeded(Zoo), input_shapes=SHAPES)
    assert report.costs
    assert report.costs.latency is None
    assert report.costs.macs_before == macs(seeded(Zoo))
    assert report.costs.macs_after == macs(lrzip.load_into(seeded(Zoo), zoo.with_name("small.pt")))
    assert report.costs.layers.keys() == {"stem", "grouped", "up", "mix", "words", "head", "attention.in_proj"}


def test_factors_before_a_stride_run_at_all_input_positions(tmp_path: Path) -> None:
    model, shapes = seeded(ResNet), ["2,3,32,32"]
    torch.save(model.state_dict(), tmp_path / "a.pt")
    own = {"layers": {"layer[23].0.conv1": "rank:4"}, "decomposition": "tucker"}
    options = {**own, "model": model, "input_shapes": shapes}
    report = lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", budget="macs=40%", **options)  # type: ignore[arg-type]
    assert {"layer2.0.conv1", "layer3.0.conv1"} <= {result.decision.layer.name for result in report.results}
    small = lrzip.load_into(seeded(ResNet), tmp_path / "b.pt")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(torch.zeros(2, 3, 32, 32))
    assert report.costs
    assert report.costs.macs_before
    assert report.costs.macs_after == counter.get_total_flops() // 2 <= 0.4 * report.costs.macs_before
    graph = tmp_path / "a.onnx"
    lrzip.export(tmp_path / "a.pt", "onnx", graph, model=model, input_shapes=shapes)
    program = lrzip.compress(graph, tmp_path / "b.onnx", budget="macs=40%", input_shapes=shapes, **own)  # type: ignore[arg-type]
    assert program.costs
    again = lrzip.compress(tmp_path / "b.onnx", budget="macs=100%", input_shapes=shapes, dry_run=True).costs
    assert again
    assert program.costs.macs_after == again.macs_before


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 32, (1, 3), stride=(2, 1)),
        nn.Conv2d(16, 32, (3, 1), stride=(1, 2), padding=1),
        nn.Conv2d(16, 32, 3, stride=4, padding=1, dilation=2),
    ],
    ids=["row", "column", "strided"],
)
def test_strides_along_an_axis_without_a_kernel_are_counted(layer: nn.Conv2d, tmp_path: Path) -> None:
    model, shape = nn.Sequential(layer, nn.ReLU()).eval(), (1, 16, 24, 24)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    options = {"model": model, "input_shapes": [",".join(map(str, shape))], "decomposition": "tucker"}
    report = lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=5, **options)  # type: ignore[arg-type]
    small = lrzip.load_into(model, tmp_path / "b.pt")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(torch.zeros(shape))
    assert report.costs
    assert report.costs.macs_after == counter.get_total_flops() // 2


def test_rounded_ranks_stay_within_a_budget(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 3, stride=2), nn.Conv2d(64, 16, 3, stride=4)).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    options = {"model": model, "input_shapes": ["1,16,64,64"], "decomposition": "tucker", "round_to": 8}
    for share in (30, 45, 60, 90):
        report = lrzip.compress(tmp_path / "a.pt", budget=f"macs={share}%", dry_run=True, **options)  # type: ignore[arg-type]
        assert report.plan.budget
        assert report.costs
        assert report.costs.macs_after == report.plan.budget.used <= report.plan.budget.limit


def test_a_budget_of_time_is_met_by_every_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace times by one microsecond per weight."""

    def timed(_: object, decision: Factorize) -> Latency:
        return Latency(decision.parameters_before * 1e-6, decision.parameters_after * 1e-6)

    seconds = sum(parameter.numel() for parameter in Net().parameters()) * 1e-6
    monkeypatch.setattr("lrzip.pipeline.meters.layer_latency", timed)
    monkeypatch.setattr("lrzip.pipeline.meters.network_latency", lambda *_: Latency(seconds, seconds))
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    options = {"decomposition": "tucker", "model": seeded(Net), "input_shapes": ["1,3,16,16"], "dry_run": True}
    plan = lrzip.compress(tmp_path / "a.pt", budget="latency=50%", **options).plan  # type: ignore[arg-type]
    assert "tucker" in {decision.decomposition for decision in plan.factorize}
    assert plan.budget
    saved = 1000 * plan.parameters_saved
    # Times are interpolated between sizes and rounded to nanoseconds, one rounding per layer.
    assert plan.budget.used == pytest.approx(plan.budget.dense - saved, abs=len(plan.factorize))
    assert plan.budget.used <= plan.budget.limit == plan.budget.dense // 2


def test_latency_is_measured_for_every_layer_and_the_network(zoo: Path) -> None:
    options = {"ratio": 2, "model": seeded(Zoo), "input_shapes": SHAPES, "latency": True, "dry_run": True}
    report = lrzip.compress(zoo, **options)  # type: ignore[arg-type]
    assert report.costs
    assert report.costs.latency
    for latency in [report.costs.latency, *(cost.latency for cost in report.costs.layers.values())]:
        assert latency
        assert latency.dense > 0
        assert latency.factorized > 0


def test_layers_that_do_not_get_faster_are_kept(zoo: Path) -> None:
    options = {"ratio": 2, "model": seeded(Zoo), "input_shapes": SHAPES, "dry_run": True}
    never = lrzip.compress(zoo, **options, min_speedup=1e9)  # type: ignore[arg-type]
    assert not never.plan.factorize
    reasons = {keep.name: keep.reason for keep in never.plan.keep}
    assert "times as fast; `--min-speedup` asks for 1e+09" in reasons["stem"]
    always = lrzip.compress(zoo, **options, min_speedup=1e-9)  # type: ignore[arg-type]
    assert len(always.plan.factorize) == 7


def test_the_command_line_reports_costs(tmp_path: Path) -> None:
    (tmp_path / "nets_of_costs.py").write_text(
        "from tests.support.networks import Net, seeded\nmake = lambda: seeded(Net)\n"
    )
    torch.save(seeded(Net).state_dict(), tmp_path / "a.pt")
    options = ["--model", "nets_of_costs:make", "--input-shape", "1,3,16,16", "--latency"]
    document = json.loads(run("compress", "a.pt", "--ratio", "2", *options, "--json", cwd=tmp_path).stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["totals"]["macs_after"] < document["totals"]["macs_before"]
    assert document["layers"][0]["latency"]["dense_ms"] > 0
    text = run("compress", "a.pt", "--ratio", "2", *options, "--dry-run", cwd=tmp_path).stdout.decode()
    assert "multiply-accumulates (" in text
    assert "ms a run here (" in text
    document = json.loads(run("analyze", "a.pt", *options, "--json", cwd=tmp_path).stdout)
    jsonschema.validate(document, ANALYZE)
    assert document["totals"]["costs_at_energy"]["0.7"]["macs_before"] > 0
    assert "multiply-accumulates (" in run("analyze", "a.pt", *options, cwd=tmp_path).stdout.decode()
    assert "`--model" in error_of(run("analyze", "a.pt", "--latency", cwd=tmp_path), 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"latency": True}, UsageError, "Give `model=PKG.MOD:NET` and `input_shapes="),
        ({"input_shapes": ["1,3"]}, UsageError, "holds only weights.*Give `model="),
        ({"min_speedup": 2.0, "model": Net()}, UsageError, "Give `input_shapes="),
        ({"min_speedup": 0.0, "model": Net(), "input_shapes": ["1,3,16,16"]}, UsageError, "must be above 0"),
        ({"model": Net(), "input_shapes": ["1,4,16,16"]}, LrzipError, "The network does not take"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[LrzipError], message: str, tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "a.pt")
    with pytest.raises(error, match=message):
        lrzip.compress(tmp_path / "a.pt", ratio=2, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "zoo.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the LSTM's flat weights
        torch.export.save(torch.export.export(seeded(Zoo), Zoo.inputs()), path)
    return path


def test_a_program_has_the_profile_of_its_network(program: Path, tmp_path: Path) -> None:
    expected = profile(seeded(Zoo), SHAPES)
    found = lrzip.compress(program, tmp_path / "small.pt2", ratio=2, trust=True, latency=True)
    assert found.costs
    assert expected.run.macs
    assert found.costs.macs_before == expected.run.macs / 2  # of one of two samples
    assert (found.costs.samples, found.costs.inputs) == (2, {"image": (2, 3, 12, 12), "ids": (2, 5)})
    for name in ("stem", "grouped", "up", "mix", "head"):
        applied = 0 if name == "up" else -1  # a transposed convolution multiplies at the positions of its inputs
        times = expected.run.positions[name].counts[applied]
        assert found.costs.layers[name].macs_before == times * prod(shape_of(name)) / 2
    assert found.costs.latency
    assert found.costs.latency.speedup > 0
    assert all(cost.latency and cost.latency.dense > 0 for cost in found.costs.layers.values())
    assert not lrzip.analyze(program).costs_at, "nothing of it runs"
    with pytest.raises(UntrustedFile, match="`trust=True`"):
        lrzip.analyze(program, latency=True)


def shape_of(name: str) -> torch.Size:
    return seeded(Zoo).get_parameter(f"{name}.weight").shape


def test_an_onnx_model_has_the_profile_of_its_network(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    lrzip.export(tmp_path / "net.pt", "onnx", model=seeded(Net), input_shapes=["1,3,16,16"])
    expected = profile(seeded(Net), ["1,3,16,16"])
    report = lrzip.compress(tmp_path / "net.onnx", tmp_path / "small.onnx", ratio=2, latency=True)
    assert report.costs
    assert report.costs.latency
    assert report.costs.macs_before == expected.run.macs
    assert expected.run.macs
    four = lrzip.analyze(tmp_path / "net.onnx", input_shapes=["4,3,16,16"])
    assert four.costs_at[0.9].macs_before == 4 * expected.run.macs
    for shape, message in (("1,4,16,16", "declares its input"), ("1,3,16", "declares its input")):
        with pytest.raises(LrzipError, match=message):
            lrzip.analyze(tmp_path / "net.onnx", input_shapes=[shape])
    with pytest.raises(LrzipError, match="takes 1 inputs"):
        lrzip.analyze(tmp_path / "net.onnx", input_shapes=["1,3,16,16", "1,3"])
    with pytest.raises(UsageError, match="`min_speedup` times layers of a network"):
        lrzip.compress(tmp_path / "net.onnx", ratio=2, min_speedup=1.0, dry_run=True)
