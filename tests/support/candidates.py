"""Candidates for rank rules, and contexts as the pipeline builds them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.moments import MeasuredChanges
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions
from lrzip.linalg.svd import Solver
from lrzip.pipeline.meters import meter_of
from lrzip.pipeline.survey import candidate_of
from lrzip.ranks import Candidate, Choice, Context, RankRule
from tests.support.matrices import slow

EPS = torch.finfo(torch.float32).eps
DECOMPOSITIONS = Decompositions(DEFAULT_DECOMPOSITION, Solver())


def linear_layer(m: int, n: int, name: str = "x") -> Layer:
    """Return a linear layer with a float32 weight of shape (m, n)."""
    return Layer(name, name, LINEAR, TensorSpec(f"{name}.weight", (m, n), "float32", 4 * m * n), None)


def candidate(m: int, n: int, name: str = "x", values: Tensor | None = None) -> Candidate:
    """Return a linear layer as a candidate for the SVD, by default with slowly decaying singular values."""
    layer = linear_layer(m, n, name)
    spectrum = Spectrum(slow(min(m, n)) if values is None else values, (m, n), EPS)
    return candidate_of(layer, DEFAULT_DECOMPOSITION, DECOMPOSITIONS.of(DEFAULT_DECOMPOSITION), (spectrum,))


def calibrated(
    values: Tensor,
    shape: tuple[int, int],
    fisher: float | None = None,
    measured: MeasuredChanges | None = None,
) -> Candidate:
    """Return a linear layer as a candidate, with a Fisher sensitivity and measured changes."""
    layer, spectra = linear_layer(*shape), (Spectrum(values, shape, EPS),)
    return Candidate(layer, (min(shape),), lambda ranks: ranks[0] * sum(shape), spectra, fisher, measured)


def choose(rule: RankRule, candidates: Sequence[Candidate], round_to: int | None = None) -> Choice:
    """Return the choice of a rule for a checkpoint that consists of these linear layers alone, run on one sample."""
    tensors = [candidate.layer.weight for candidate in candidates]
    unit = "params" if rule.unit == "macs" else rule.unit  # one multiply-accumulate per parameter
    meter = meter_of(unit, tensors, DECOMPOSITIONS) if unit else None
    return rule.choose(candidates, Context(meter, round_to=round_to))
