"""Pictures of spectra and of curves of plans, with matplotlib where it is installed."""

from importlib.util import find_spec
from pathlib import Path

from lrzip.analysis import Analysis
from lrzip.curves import Curve
from lrzip.errors import LrzipError, UsageError
from lrzip.files.atomic import atomic_file, check_output

_SUFFIXES = (".png", ".svg", ".pdf")
# More names than this leave no room for the curves.
_NAMED_LAYERS = 72


def check_picture(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a picture that could not be drawn, before any work is done."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"`--plot` takes a {', '.join(_SUFFIXES)} file, got `{path}`.")
    check_output(path, source, force=force)
    if find_spec("matplotlib") is None:
        raise LrzipError("`--plot` needs matplotlib. Install it with `pip install 'lrzip-nn[plot]'`.")


def draw_spectra(analysis: Analysis, path: Path) -> None:
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
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def draw_curve(curve: Curve, path: Path) -> None:
    """Draw the predicted loss of plans against their size, as a share of the whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    spent = sorted((point.plan.budget for point in curve.points if point.plan.budget), key=lambda budget: budget.used)
    shares = [100 * budget.used / max(budget.whole, 1) for budget in spent]
    axes.plot(shares, [budget.predicted_loss for budget in spent], marker="o", markersize=4)
    axes.set(xlabel=f"{spent[0].unit}, % of the whole", ylabel=f"predicted loss ({spent[0].objective})", ylim=(0, None))
    axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _label(name: str) -> str:
    """Return a name that matplotlib takes as it is: no mathematics, no leading underscore that hides it."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")


def _shade(index: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](index / max(count - 1, 1))
    return red, green, blue, alpha
