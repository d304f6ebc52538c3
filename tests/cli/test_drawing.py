"""Pictures, by the data in their axes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lrzip
from lrzip.api.curve import Curve
from lrzip.cli.drawing import (
    check_picture,
    draw_curve,
    draw_search,
    draw_sensitivities,
    draw_spectra,
    pareto_front,
    save_picture,
)
from lrzip.core.errors import OutputExists, UsageError
from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.plan import Plan
from lrzip.core.report import Report
from lrzip.search.report import SearchReport
from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
from lrzip.search.trial import Trial
from lrzip.training.evaluation import Evaluation

pytest.importorskip("matplotlib")
from matplotlib.patches import Rectangle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawing") / "net.pt"
    torch.manual_seed(0)
    layers = {"_a$": nn.Linear(9, 6), "b": nn.Linear(6, 8), "zero": nn.Linear(4, 4)}
    state = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    torch.save(state | {"zero.weight": torch.zeros(4, 4)}, path)
    return path


def numbers(values: Any) -> list[float]:
    """Return the data of a line."""
    return [float(value) for value in values]


def trial(parameters: int, accuracy: float, *, within: bool = True) -> Trial:
    scores = {"accuracy": accuracy}
    return Trial(str(parameters), {}, {}, parameters, scores, scores, within=within)


def test_spectra_are_relative_to_the_largest_value_and_the_full_rank(path: Path) -> None:
    analysis = lrzip.analyze(path)
    decay, kept = draw_spectra(analysis).axes
    assert len(decay.lines) == len(kept.lines) == 2  # a zero matrix has no curve
    for line, energy, item in zip(decay.lines, kept.lines, analysis.layers, strict=False):
        values = item.candidate.spectra[0].values
        assert numbers(line.get_xdata()) == [(index + 1) / len(values) for index in range(len(values))]
        assert numbers(line.get_ydata()) == pytest.approx((values / values[0]).tolist())
        assert numbers(energy.get_ydata())[-1] == pytest.approx(1)
    assert [line.get_label() for line in kept.lines] == ["\u200b_a\\$", "b"]


def test_a_curve_has_its_plans_by_size_and_their_metrics(path: Path) -> None:
    found = lrzip.curve(path, "params=95%,80%,90%")
    budgets = [point.plan.budget for point in found.points if point.plan.budget]
    (axes,) = draw_curve(found).axes
    (line,) = axes.lines
    expected = sorted((100 * budget.used / budget.dense, budget.predicted_loss) for budget in budgets)
    assert list(zip(numbers(line.get_xdata()), numbers(line.get_ydata()), strict=True)) == expected
    assert len(expected) == 3
    scores = [Evaluation({"r2": score}, 5, "regression") for score in (0.9, 0.7, 0.8)]
    dense = Evaluation({"r2": 0.95}, 5, "regression")
    measured = draw_curve(Curve("net.pt", "0", found.points, dense, scores)).axes[1]
    assert [numbers(line.get_ydata()) for line in measured.lines] == [[0.7, 0.8, 0.9], [0.95, 0.95]]


def test_sensitivities_are_bars_by_layer_and_energy() -> None:
    layers = [Layer(n, n, LINEAR, TensorSpec(f"{n}.weight", (9, 9), "float32", 324), None) for n in ("a", "b")]
    drops = {(0.8, "a"): 0.02, (0.8, "b"): 0.04, (0.9, "a"): 0.01, (0.9, "b"): 0.03}
    items = [
        LayerSensitivity(layer, energy, (1,), 18, 1.0, 0.5, drops[energy, layer.name], None)
        for energy in (0.8, 0.9)
        for layer in layers
    ]
    (axes,) = draw_sensitivities(Sensitivities({"accuracy": 0.9}, "accuracy", 0.01, items, 0, 1, 4)).axes
    assert [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)] == pytest.approx([2, 4, 1, 3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert axes.get_ylabel() == "drop of accuracy (percentage points)"


def test_the_front_has_no_trial_that_a_smaller_one_equals() -> None:
    trials = [trial(100, 0.9), trial(50, 0.8), trial(60, 0.8), trial(80, 0.85), trial(50, 0.7), trial(90, 0.84)]
    front = pareto_front(trials, lambda one: one.scores["accuracy"])
    assert [(one.parameters, one.scores["accuracy"]) for one in front] == [(50, 0.8), (80, 0.85), (100, 0.9)]


def test_a_search_shows_its_trials_its_result_and_its_bound() -> None:
    dense, best = trial(100, 0.9), trial(50, 0.88)
    report = Report(Plan((), (), "a.pt", "sha256:0"), [], None, 100, 400, 200, (), 1.0, "0")
    trials = [trial(70, 0.89), best, trial(20, 0.5, within=False)]
    found = SearchReport(
        report, "global", 3.0, "accuracy", True, 0.01, 2.0, dense, best, trials, (9, 9), None, False, None
    )
    (axes,) = draw_search(found).axes
    points = {c.get_label(): [tuple(numbers(xy)) for xy in np.asarray(c.get_offsets())] for c in axes.collections}
    assert points == {
        "within the bound": [(70, 0.89), (50, 0.88)],
        "not within": [(20, 0.5)],
        "dense": [(100, 0.9)],
        "result": [(50, 0.88)],
    }
    front, bound = axes.lines
    assert numbers(front.get_xdata()) == [20, 50, 70, 100]
    assert numbers(bound.get_ydata())[0] == pytest.approx(0.9 - 3 * 0.01)


def test_a_picture_is_written_in_the_format_of_its_suffix(path: Path, tmp_path: Path) -> None:
    figure = draw_spectra(lrzip.analyze(path))
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        save_picture(figure, tmp_path / f"a{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)
    with pytest.raises(UsageError, match=r"`--plot` takes a \.png, \.svg, \.pdf file"):
        check_picture(tmp_path / "a.gif", path, force=False)
    with pytest.raises(OutputExists):
        check_picture(tmp_path / "a.png", path, force=False)
