from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

import lrzip
from lrzip.core.errors import LrzipError, OutputExists, UsageError
from lrzip.formats.outputs import default_output
from lrzip.linalg.svd import METHODS
from tests.support.checkpoints import nested, safetensors
from tests.support.networks import Net, Sound, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def ranks(report: Any) -> dict[str, int]:
    return {decision.layer.name: decision.ranks[0] for decision in report.plan.factorize}


def reasons(report: Any) -> dict[str, str]:
    return {keep.name: keep.reason for keep in report.plan.keep}


def test_energy_ranks_are_the_smallest_that_keep_the_energy(path: Path) -> None:
    report = lrzip.compress(path, energy=0.7, dry_run=True)
    state = torch.load(path, weights_only=True)
    found = ranks(report)
    assert found
    for name, rank in found.items():
        values = torch.linalg.svdvals(state[f"{name}.weight"].double().flatten(1)).square()
        shares = values.cumsum(0) / values.sum()
        assert int((shares < 0.7).sum()) + 1 == rank


def test_factors_are_not_factorized_again(path: Path, tmp_path: Path) -> None:
    first = lrzip.compress(path, tmp_path / "small.pt", energy=0.7)
    factors = {f"{name}.{stage}" for name in ranks(first) for stage in (0, 1)}
    kept = {item.name: item.reason for item in lrzip.analyze(tmp_path / "small.pt").keep}
    assert factors <= {name for name, reason in kept.items() if reason.startswith("already factorized")}
    with pytest.raises(LrzipError, match="no layer that can be factorized: most are kept as already factorized"):
        lrzip.compress(tmp_path / "small.pt", energy=0.7, dry_run=True)
    named = lrzip.compress(tmp_path / "small.pt", rank=1, only=["fc1.0"], dry_run=True)
    assert ranks(named) == {"fc1.0": 1}


def test_errors_are_those_of_the_stored_factors(path: Path, tmp_path: Path) -> None:
    report = lrzip.compress(path, tmp_path / "small.pt", energy=0.7)
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "small.pt"))
    assert report.results
    for result in report.results:
        name = result.decision.layer.name
        weight = before[f"{name}.weight"].flatten(1)
        product = after[f"{name}.1.weight"].flatten(1) @ after[f"{name}.0.weight"].flatten(1)
        assert float((weight - product).norm() / weight.norm()) == pytest.approx(result.error, rel=1e-4)
        assert result.error**2 <= 0.3 + 1e-3  # what an energy of 0.7 discards


def test_the_rule_of_a_layer_goes_before_the_global_one(path: Path) -> None:
    rules = {"conv*": "rank:3", "conv2": "keep", "fc1": "ratio:4"}
    report = lrzip.compress(path, rank=5, layers=rules, dry_run=True)
    assert ranks(report) == {"conv1": 3, "fc1": 4, "fc2": 5}
    assert reasons(report)["conv2"] == "kept by `--layer`"


def test_a_rank_that_saves_nothing_keeps_the_layer_with_the_break_even(path: Path) -> None:
    report = lrzip.compress(path, rank=8, dry_run=True)
    assert reasons(report)["fc2"] == "rank 8 saves nothing; break-even is 7"
    assert "fc2" not in ranks(report)


def test_a_ratio_that_no_rank_meets_keeps_the_layer(path: Path) -> None:
    assert reasons(lrzip.compress(path, ratio=9, dry_run=True))["fc2"] == "no rank meets ratio 9; break-even is 7"


def test_ranks_are_rounded_up_where_that_saves(path: Path) -> None:
    assert ranks(lrzip.compress(path, rank=5, round_to=8, dry_run=True)) == {"conv1": 8, "conv2": 8, "fc1": 8, "fc2": 5}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_factors_have_the_requested_dtype(dtype: str, path: Path, tmp_path: Path) -> None:
    lrzip.compress(path, tmp_path / "small.pt", rank=4, only=["fc1"], dtype=dtype)
    state = torch.load(tmp_path / "small.pt", weights_only=True)
    assert {str(state[f"fc1.{stage}.weight"].dtype) for stage in (0, 1)} == {f"torch.{dtype}"}
    assert state["fc1.1.bias"].dtype == torch.float32


def test_factors_that_overflow_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.rand(30, 30) * 1e12}, tmp_path / "a.pt")
    with pytest.raises(LrzipError, match=r"`fc` of .* overflows in float16"):
        lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=2, dtype="float16")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_kept(value: float, tmp_path: Path) -> None:
    weight = torch.rand(30, 30)
    weight[3, 4] = value
    torch.save({"bad.weight": weight, "good.weight": torch.rand(30, 30)}, tmp_path / "a.pt")
    report = lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=2)
    assert reasons(report)["bad"] == "contains NaN or Inf"
    assert ranks(report) == {"good": 2}


SKETCHES = ("randomized", "subspace", "srft", "row-extraction", "single-pass")


@pytest.mark.parametrize("svd", METHODS)
def test_the_same_seed_gives_the_same_bytes(svd: str, path: Path, tmp_path: Path) -> None:
    for name, seed in (("a.pt", 3), ("b.pt", 3), ("c.pt", 4)):
        lrzip.compress(path, tmp_path / name, rank=4, svd=svd, seed=seed, tolerance=inf)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.pt", "b.pt", "c.pt"))
    assert first == again
    assert (first == other) == (svd not in SKETCHES)


@pytest.mark.parametrize("options", [{"energy": 0.7}, {"rank": 4, "svd": "randomized"}], ids=str)
def test_no_result_depends_on_the_number_of_threads(options: dict[str, Any], path: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        lrzip.compress(path, tmp_path / f"{count}.pt", **options)
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    one, two, three = ((tmp_path / f"{count}.pt").read_bytes() for count in (1, 2, 3))
    assert one == two == three


def test_results_do_not_depend_on_other_layers(path: Path, tmp_path: Path) -> None:
    lrzip.compress(path, tmp_path / "all.pt", rank=4, svd="randomized", tolerance=inf)
    lrzip.compress(path, tmp_path / "one.pt", rank=4, svd="randomized", tolerance=inf, only=["fc1"])
    every, single = (torch.load(tmp_path / name, weights_only=True) for name in ("all.pt", "one.pt"))
    assert every["fc1.0.weight"].equal(single["fc1.0.weight"])


@pytest.mark.parametrize("svd", METHODS)
def test_every_method_is_within_the_tolerance_and_reported(svd: str, path: Path, tmp_path: Path) -> None:
    report = lrzip.compress(path, tmp_path / "small.pt", rank=4, svd=svd)
    state = torch.load(path, weights_only=True)
    assert report.results
    for result in report.results:
        weight = state[f"{result.decision.layer.name}.weight"].double().flatten(1)
        values = torch.linalg.svdvals(weight)
        optimum = float(torch.linalg.vector_norm(values[4:]) / torch.linalg.vector_norm(values))
        assert result.excess is not None
        assert result.excess <= 1e-3
        assert optimum * (1 - 1e-5) <= result.error <= optimum * (1 + result.excess) * (1 + 1e-5)
        assert result.method.startswith({"auto": "gram", "exact": "lapack"}.get(svd, svd))
    unchecked = lrzip.compress(path, tmp_path / "quick.pt", rank=4, svd=svd, tolerance=inf)
    assert all((result.excess is None) == (svd in SKETCHES) for result in unchecked.results)


def test_noise_is_left_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(80, 5, generator=generator) @ torch.randn(5, 60, generator=generator)
    noise = torch.randn(80, 60, generator=generator)
    torch.save({"fc.weight": signal + 0.1 * noise, "pure.weight": noise}, tmp_path / "net.pt")
    report = lrzip.compress(tmp_path / "net.pt", tmp_path / "small.pt", vbmf=True)
    assert ranks(report) == {"fc": 5, "pure": 1}
    assert ranks(lrzip.compress(tmp_path / "net.pt", rank=7, layers={"fc": "vbmf"}, dry_run=True))["fc"] == 5


def test_an_energy_that_is_met_exactly_gives_the_same_rank_with_and_without_factors(tmp_path: Path) -> None:
    # 60 equal values, of which float32 alone cannot tell whether 27 or 28 keep 45 %.
    generator = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(300, 60, dtype=torch.float64, generator=generator)).Q.float()
    torch.save({"fc.weight": weight}, tmp_path / "net.pt")
    planned = lrzip.compress(tmp_path / "net.pt", energy=0.45, dry_run=True)
    written = lrzip.compress(tmp_path / "net.pt", tmp_path / "small.pt", energy=0.45)
    values = torch.linalg.svdvals(weight.double()).square().cumsum(0)
    expected = int((values < 0.45 * values[-1]).sum()) + 1
    assert ranks(planned) == ranks(written) == {"fc": expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of .* got none"),
        ({"energy": 0.9, "rank": 3}, "got `energy` and `rank`"),
        ({"energy": 0}, "above 0 and at most 1, got 0"),
        ({"rank": 3, "round_to": 0}, "at least 1"),
        ({"rank": 3, "dtype": "int8"}, "got int8"),
        ({"rank": 3, "svd": "magic"}, "got magic"),
        ({"rank": 3, "tolerance": 0.0}, "`tolerance` must be above 0, or inf, got 0"),
        ({"rank": 3, "vbmf": True}, "got `rank` and `vbmf`"),
        ({"rank": 3, "oversample": -1}, "at least 0"),
        ({"rank": 3, "layers": {"fc1": "rank:0"}}, "whole number"),
        ({"rank": 3, "device": "cuda:99"}, "`cuda:99` cannot be used"),
        ({"rank": 3, "device": "toaster"}, "`toaster` cannot be used"),
        ({"plan": "plan.json", "skip": ["fc1"]}, "decides on every layer"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        lrzip.compress(path, **options)
    assert not default_output(path).exists()


def test_a_checkpoint_without_layers_is_refused_with_the_commonest_reason(tmp_path: Path) -> None:
    torch.save({"a": torch.rand(3), "b": torch.rand(3), "c": torch.rand(3)}, tmp_path / "a.pt")
    with pytest.raises(LrzipError, match="no layer that can be factorized: most are kept as a vector"):
        lrzip.compress(tmp_path / "a.pt", energy=0.9)


def test_the_default_output_is_beside_the_input(path: Path) -> None:
    assert lrzip.compress(path, rank=4).output == path.with_name("net.lrzip.pt")
    with pytest.raises(OutputExists):
        lrzip.compress(path, rank=4)


def test_a_dry_run_writes_nothing_and_predicts_the_bytes(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    dry = lrzip.compress(path, ratio=2, dry_run=True)
    assert sorted(tmp_path.iterdir()) == [path]
    wet = lrzip.compress(path, ratio=2)
    assert dry.plan == wet.plan
    assert abs(dry.nbytes_after - wet.nbytes_after) < 1000  # the names of more tensors in the header


def test_totals_count_every_parameter(path: Path, tmp_path: Path) -> None:
    report = lrzip.compress(path, tmp_path / "b.pt", ratio=2)
    model = lrzip.load_into(Net(), tmp_path / "b.pt")
    assert report.parameters_before == sum(p.numel() for p in Net().parameters())
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    assert report.nbytes_after == (tmp_path / "b.pt").stat().st_size


def test_every_tensor_is_in_the_report(tmp_path: Path) -> None:
    path = nested(tmp_path)
    report = lrzip.compress(path, ratio=2).to_dict()
    listed = {item["tensor"] for item in [*report["layers"], *report["kept"]]}
    names = torch.load(path, weights_only=True)["state_dict"].keys()
    biases = {item["tensor"].replace("weight", "bias") for item in report["layers"]}
    assert listed | biases >= names


def test_convolutions_of_one_and_three_dimensions_survive(tmp_path: Path) -> None:
    model = seeded(Sound)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", ratio=1.2)
    lrzip.export(tmp_path / "b.pt", "dense", tmp_path / "c.pt")
    x = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    factored, dense = lrzip.load_into(Sound(), tmp_path / "b.pt"), lrzip.load_into(Sound(), tmp_path / "c.pt")
    torch.testing.assert_close(factored(x), dense(x), rtol=1e-4, atol=1e-5)


def test_each_rank_is_rounded_as_far_as_it_goes(tmp_path: Path) -> None:
    weight = torch.randn(64, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.save({"conv.weight": weight}, tmp_path / "a.pt")
    options: Any = {"decomposition": "tucker", "dry_run": True}
    (free,) = lrzip.compress(tmp_path / "a.pt", energy=0.8, **options).plan.factorize
    (rounded,) = lrzip.compress(tmp_path / "a.pt", energy=0.8, round_to=8, **options).plan.factorize
    assert free.ranks[0] % 8
    assert 8 < free.ranks[1] < 12
    assert rounded.ranks == (-(-free.ranks[0] // 8) * 8, 12)
    (spent,) = lrzip.compress(tmp_path / "a.pt", budget="params=40%", round_to=8, **options).plan.factorize
    assert spent.ranks[0] % 8 == 0
    assert spent.ranks[1] in (8, 12)
