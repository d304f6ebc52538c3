"""The result of observing a network on calibration data, from which factors are fitted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import nn

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.data import batches_of
from lrzip.calibration.sequential import Fit, Fitted, Job
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Statistics
from lrzip.ranks.objectives import CALIBRATED_OBJECTIVE, DEFAULT_OBJECTIVE
from lrzip.training.data.samples import Samples


@dataclass(frozen=True)
class Calibration:
    """Statistics of the inputs of layers on calibration data, and the corrections that are possible with them.

    Attributes:
        examples: Name of the calibration data.
        count: Number of samples that were used.
        layers: The layers that were observed.
        statistics: Moments of the inputs, for the layers that the calibration data reaches.
        corrections: Corrections to make.
        run: Fits layers in the order in which they run; None without corrections.
        samples: The samples that were used; None for stored statistics.
        settings: Settings of the calibration.
        network: The network that was run; None for a program or stored statistics.
        remarks: What was left out, and why.
        positional: Whether named inputs are given by position.
    """

    examples: str
    count: int
    layers: Sequence[Layer]
    statistics: Statistics
    corrections: Corrections = field(default_factory=Corrections)
    run: Callable[[Job], Fitted] | None = None
    samples: Samples | None = None
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    network: nn.Module | None = None
    remarks: Sequence[str] = ()
    positional: bool = False

    @property
    def planned(self) -> Statistics:
        """The moments by which ranks are chosen: centered if errors of the mean are corrected."""
        if not self.corrections.bias:
            return self.statistics
        return {name: moments.centered for name, moments in self.statistics.items()}

    @property
    def first_batch(self) -> Sequence[Arguments]:
        """One batch of the samples; nothing for stored statistics."""
        if self.samples is None:
            return ()
        samples = self.samples.unaugmented()
        return list(islice(batches_of(samples, self.settings, None, positional=self.positional), 1))

    @property
    def objective(self) -> str:
        """The default objective: that of Fisher sensitivities if they are known for all layers."""
        known = all(moments.fisher is not None for moments in self.statistics.values())
        return CALIBRATED_OBJECTIVE if known and self.statistics else DEFAULT_OBJECTIVE

    @property
    def scarce(self) -> Mapping[str, tuple[int, int]]:
        """For each layer observed at fewer positions than its weight has columns, these two numbers."""
        sizes = {layer.name: layer.input_size for layer in self.layers if not layer.kind.is_indexed}
        counts = {name: moments.count for name, moments in self.statistics.items()}
        return {name: (counts[name], size) for name, size in sizes.items() if counts.get(name, size) < size}

    def fit(self, factorize: Sequence[Layer], fit: Fit) -> Fitted:
        """Return the factors of layers, fitted in sequence, and the other tensors that change with them.

        Args:
            factorize: The layers to factorize.
            fit: Computes factors.

        Raises:
            LrzipError: The network fails on the calibration data.
        """
        if self.run is None:
            return Fitted()
        chosen = {layer.name for layer in factorize}
        others = [layer for layer in self.layers if layer.name not in chosen and self.corrections.refit]
        return self.run(
            Job(
                layers=[layer for layer in (*factorize, *others) if layer.name in self.statistics],
                factorize=frozenset(chosen),
                fit=fit,
                statistics=self.statistics,
                corrections=self.corrections,
                positions=self.settings.positions,
            )
        )
