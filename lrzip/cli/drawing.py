"""Pictures of spectra, plans, sensitivities and searches, with matplotlib."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lrzip.api.analyze import Analysis
from lrzip.api.curve import Curve
from lrzip.core.errors import LrzipError, UsageError
from lrzip.formats.files.atomic import atomic_file, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lrzip.search.report import SearchReport
    from lrzip.search.sensitivities import Sensitivities
    from lrzip.search.trial import Trial


_SUFFIXES = (".png", ".svg", ".pdf")
# More names than this leave no room for the curves.
_NAMED_LAYERS = 72


def check_picture(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a picture that could not be written, before any work is done."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"`--plot` takes a {', '.join(_SUFFIXES)} file, got `{path}`.")
    check_output(path, source, force=force)
    if find_spec("matplotlib") is None:
        raise LrzipError("`--plot` needs matplotlib. Install it with `pip install 'lrzip-nn[plot]'`.")


def draw_spectra(analysis: Analysis) -> "Figure":
    """Draw, for every layer, σᵢ / σ₁ and the energy kept against the rank as a share of the full rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    decay, kept = figure.subplots(1, 2)
    for index, item in enumerate(analysis.layers):
        values = item.candidate.spectra[0].values
        if not float(values[0]):
            continue
        shade = _shade(index, len(analysis.layers))
        ranks = [(rank + 1) / len(values) for rank in range(len(values))]
        decay.plot(ranks, (values / values[0]).clamp(min=1e-8).tolist(), color=shade, linewidth=1)
        energy = values.square().cumsum(0) / values.square().sum()
        kept.plot(ranks, energy.tolist(), color=shade, linewidth=1, label=_label(item.candidate.layer.name))
    decay.set(yscale="log", xlabel="rank / full rank", ylabel="σ / σ₁", title="Singular values")
    kept.set(xlabel="rank / full rank", ylabel="share of Σσ²", title="Energy kept", ylim=(0, 1.02))
    if 0 < len(analysis.layers) <= _NAMED_LAYERS:
        columns = -(-len(analysis.layers) // 24)
        figure.legend(*kept.get_legend_handles_labels(), loc="outside right upper", fontsize="x-small", ncols=columns)
    return figure


def draw_curve(curve: Curve) -> "Figure":
    """Draw the predicted loss of plans against their size relative to the dense network, and their metrics if known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    budgets = [point.plan.budget for point in curve.points if point.plan.budget]
    order = sorted(range(len(budgets)), key=lambda index: budgets[index].used)
    spent = [budgets[index] for index in order]
    shares = [100 * budget.used / max(budget.dense, 1) for budget in spent]
    losses = [budget.predicted_loss for budget in spent]
    axes.plot(shares, losses, marker="o", markersize=4, label="predicted loss")
    axes.set(
        xlabel=f"{spent[0].unit}, % of the dense network",
        ylabel=f"predicted loss ({spent[0].objective})",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    if curve.dense:
        metric, dense = next(iter(curve.dense.scores.items()))
        measured = axes.twinx()
        scores = [curve.measured[index].scores[metric] for index in order]
        measured.plot(shares, scores, marker="s", markersize=4, color="tab:orange", label=_label(metric))
        measured.axhline(dense, color="black", linewidth=0.7, linestyle="--", label="dense")
        measured.set_ylabel(f"{_label(metric)} on the validation set")
        lines = [*axes.get_lines(), *measured.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], fontsize="x-small", loc="center right")
    return figure


def draw_sensitivities(found: "Sensitivities") -> "Figure":
    """Draw the drop of the metric for every layer and energy, before and after a fine-tune, with 95 % intervals."""
    from matplotlib.figure import Figure

    energies = sorted({item.energy for item in found.layers})
    names = list(dict.fromkeys(item.layer.name for item in found.layers))
    after = found.finetune_steps > 0
    figure = Figure(figsize=(max(6.4, 0.45 * len(names) + 2), 8 if after else 4.6), layout="constrained")
    parts = figure.subplots(2 if after else 1, 1, squeeze=False)[:, 0]
    width = 0.8 / len(energies)
    for index, energy in enumerate(energies):
        items = [item for item in found.layers if item.energy == energy]
        places = [names.index(item.layer.name) + (index - (len(energies) - 1) / 2) * width for item in items]
        shade, label = _shade(index, len(energies)), f"{100 * energy:g} % energy"
        parts[0].bar(places, [item.before / found.unit for item in items], width, color=shade, label=label)
        if after:
            spreads = [item.after for item in items if item.after]
            errors = [(spread.half_width or 0) / found.unit for spread in spreads]
            heights = [spread.mean / found.unit for spread in spreads]
            parts[1].bar(places, heights, width, yerr=errors, color=shade, label=label, capsize=2)
    points = " (percentage points)" if found.unit != 1 else ""
    for axes, title in zip(parts, ("as compressed", f"after {found.finetune_steps} steps"), strict=False):
        axes.set(title=f"Each layer alone, {title}", ylabel=f"drop of {_label(found.metric)}{points}")
        axes.set_xticks(range(len(names)), [_label(name) for name in names], rotation=90, fontsize="x-small")
        axes.axhline(0, color="black", linewidth=0.5)
    parts[0].legend(fontsize="x-small")
    return figure


def draw_search(found: "SearchReport") -> "Figure":
    """Draw the metric of all trials against their size, with the Pareto front and the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    metric, dense = found.metric, found.dense
    sign = 1 if found.higher_is_better else -1
    groups = (("within the bound", "tab:blue", True), ("not within", "tab:gray", False))
    for label, color, within in groups:
        points = [one for one in found.trials if one.within == within]
        sizes = [one.parameters for one in points]
        axes.scatter(sizes, [one.scores[metric] for one in points], s=16, color=color, label=label)
    front = pareto_front([dense, *found.trials], lambda one: sign * one.scores[metric])
    axes.step(
        [one.parameters for one in front],
        [one.scores[metric] for one in front],
        where="post",
        color="tab:orange",
        linewidth=1,
        label="Pareto front",
        zorder=0,
    )
    axes.scatter([dense.parameters], [dense.scores[metric]], marker="s", color="black", s=22, label="dense")
    axes.scatter(
        [found.best.parameters], [found.best.scores[metric]], marker="*", color="tab:red", s=80, label="result"
    )
    axes.axhline(dense.scores[metric] - sign * found.max_drop * found.unit, color="tab:red", linewidth=0.7)
    axes.set(xlabel="parameters", ylabel=f"{_label(metric)} on the validation set", title=f"Strategy: {found.strategy}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


def pareto_front(trials: Sequence["Trial"], gain: Callable[["Trial"], float]) -> "list[Trial]":
    """Return the trials that no smaller or equally large one equals or exceeds in gain, by ascending size."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.parameters, -gain(trial))):
        if not front or gain(trial) > gain(front[-1]):
            front.append(trial)
    return front


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure in the format that the suffix names."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _label(name: str) -> str:
    """Return a name that matplotlib shows literally: without mathematics, and not hidden by a leading underscore."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")


def _shade(index: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](index / max(count - 1, 1))
    return red, green, blue, alpha
