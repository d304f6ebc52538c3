"""Sensitivity of the metric to the compression of single layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrzip.core.layers import Layer
from lrzip.core.numbers import finite
from lrzip.search.spread import Spread
from lrzip.search.trial import ranks_document


@dataclass(frozen=True)
class LayerSensitivity:
    """The effect of compressing one layer to one energy.

    Drops are in units of the metric, positive where the network gets worse.

    Attributes:
        layer: The layer.
        energy: Share of Σσ² that is kept, in every unfolding.
        ranks: The smallest ranks that keep this share.
        parameters: Number of elements of the factors.
        norm: ‖W‖_F.
        removed: ‖W − W_r‖_F. Exact for the SVD; for several unfoldings the bound √(Σ tail²) of the truncated HOSVD (De
            Lathauwer et al. 2000, property 10).
        before: Drop before fine-tuning; it is deterministic.
        after: Drops after fine-tuning, one per seed; None without fine-tuning.
    """

    layer: Layer
    energy: float
    ranks: tuple[int, ...]
    parameters: int
    norm: float
    removed: float
    before: float
    after: Spread | None

    @property
    def drop(self) -> float:
        """The mean drop after fine-tuning if there was any, otherwise the drop before."""
        return self.after.mean if self.after else self.before

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return {
            "name": self.layer.name,
            "energy": self.energy,
            "rank": ranks_document(self.ranks),
            "parameters_before": self.layer.weight.numel,
            "parameters_after": self.parameters,
            "frobenius_norm": self.norm,
            "removed_norm": self.removed,
            "drop_before": finite(self.before),
            "drop_after": self.after.to_dict() if self.after else None,
            "drop_per_norm": _ratio(self.drop, self.norm),
            "drop_per_removed_norm": _ratio(self.drop, self.removed),
        }


@dataclass(frozen=True)
class Sensitivities:
    """The effects of compressing each layer alone.

    Attributes:
        baseline: Metrics of the dense network.
        metric: Name of the metric whose drops are reported.
        unit: Change of the metric that counts as a drop of 1: 0.01 for percentages, otherwise 1.
        layers: One entry per layer and energy, in the order of the network.
        finetune_steps: Steps of each brief fine-tuning; 0 without.
        runs: Number of seeds.
        measured: Number of results that were not cached.
    """

    baseline: Mapping[str, float]
    metric: str
    unit: float
    layers: Sequence[LayerSensitivity]
    finetune_steps: int
    runs: int
    measured: int

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return {
            "metric": self.metric,
            "baseline": {name: finite(value) for name, value in self.baseline.items()},
            "finetune_steps": self.finetune_steps,
            "runs": self.runs,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def ranking(self, energy: float) -> Sequence[str]:
        """Return the names of the layers measured at one energy, by descending drop."""
        found = [item for item in self.layers if item.energy == energy]
        return [item.layer.name for item in sorted(found, key=lambda item: -item.drop)]


def _ratio(value: float, norm: float) -> float | None:
    return finite(value / norm) if norm else None
