"""Pass 1: read the layers and compute the singular values that rank rules need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError, UsageError, first_line
from lrzip.core.layers import Keep, Layer
from lrzip.core.moments import Statistics
from lrzip.core.options import Machine
from lrzip.core.progress import Progress
from lrzip.core.spectrum import Spectrum
from lrzip.core.structure import parameters
from lrzip.decompositions import Decomposition, Decompositions
from lrzip.formats.protocols import Source
from lrzip.linalg.blocks.gram import is_finite
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.parallel import map_in_order
from lrzip.pipeline.request import Request
from lrzip.pipeline.scratch import Scratch
from lrzip.pipeline.selection import select
from lrzip.ranks import Candidate, RankRule


def find_candidates(
    source: Source,
    items: Sequence[Layer | Keep],
    request: Request,
    machine: Machine,
    *,
    statistics: Statistics | None = None,
    scratch: Scratch | None = None,
) -> Sequence[Candidate | Keep]:
    """Return layers as candidates, with the spectra that their rules need, and kept tensors as they are.

    Args:
        source: The checkpoint or network.
        items: Selected layers and kept tensors.
        request: Rules and decompositions.
        machine: Where to compute.
        statistics: Moments of the inputs of layers; the spectra are then those of outputs.
        scratch: Storage for subspaces from which factors are computed; None if there will be no factors.
    """
    if statistics is not None:
        items = [item if isinstance(item, Keep) else _reached(item, statistics) for item in items]

    def spectra(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
        rule, layer = request.rule_of(candidate.layer), candidate.layer
        decomposition = request.decompositions.of(candidate.decomposition)
        compared = len(request.decompositions.names_for(layer)) > 1
        if not rule or not (rule.needs_spectra or compared):
            return ()
        if statistics is not None:
            return decomposition.spectra(layer, weight, statistics[layer.name])
        return _spectra(candidate, weight, rule, decomposition, scratch)

    surveyed = survey(source, items, request.decompositions, spectra, device=machine.device, progress=machine.progress)
    return [_calibrated(item, request, statistics) for item in surveyed]


def selected_layers(
    source: Source, request: Request, architecture: Architecture | None = None
) -> Sequence[Layer | Keep]:
    """Return the layers that a request selects, and all other tensors with the reason to keep them.

    Raises:
        LrzipError: No layer can be factorized.
        UnknownName: A pattern matches no layer.
    """
    found, selection = source.layers(architecture), request.selection
    selected = select(found, only=selection.only, skip=selection.skip, named=[*request.rules, *request.overrides])
    if not any(isinstance(item, Layer) for item in (*found, *selected)):
        refuse(source, found)
    return selected


def _reached(layer: Layer, statistics: Statistics) -> Layer | Keep:
    if layer.name in statistics:
        return layer
    return layer.kept("the calibration does not reach it")


def _calibrated(item: Candidate | Keep, request: Request, statistics: Statistics | None) -> Candidate | Keep:
    """Return a candidate with the measurements of its layer, or a `Keep` if the layer has no rule."""
    if isinstance(item, Keep):
        return item
    if request.rule_of(item.layer) is None:
        return item.layer.kept("kept by `--layer`")
    if statistics is None:
        return item
    moments = statistics[item.layer.name]
    first, *others = (replace(each, fisher=moments.fisher, measured=moments.measured) for each in item.alternatives)
    return replace(first, others=tuple(replace(each, others=()) for each in others))


def survey(
    source: Source,
    items: Sequence[Layer | Keep],
    decompositions: Decompositions,
    spectra: Callable[[Candidate, Tensor], tuple[Spectrum, ...]],
    *,
    device: str,
    progress: Progress,
) -> Iterator[Candidate | Keep]:
    """Yield layers as candidates with their spectra, several computed at a time, and kept tensors as they are.

    Layers that their decomposition refuses, or that are not finite, are kept with the reason.
    """
    layers = [item for item in items if isinstance(item, Layer)]

    def examine(layer: Layer, weight: Tensor) -> Candidate | Keep:
        names = decompositions.names_for(layer)
        reason = decompositions.refuse(names[0], layer) or (None if is_finite(weight) else "contains NaN or Inf")
        if reason:
            return layer.kept(reason)
        candidates = [candidate_of(layer, name, decompositions.of(name)) for name in names]
        first, *others = (replace(candidate, spectra=spectra(candidate, weight)) for candidate in candidates)
        return replace(first, others=tuple(others))

    results = map_in_order(
        layers, lambda layer: read_weight(source, layer, device), examine, nbytes=memory_of, device=device
    )
    index = 0
    for item in items:
        if isinstance(item, Keep):
            yield item
            continue
        progress("reading", item, index, len(layers))
        index += 1
        yield next(results)


def _spectra(
    candidate: Candidate, weight: Tensor, rule: RankRule, decomposition: Decomposition, scratch: Scratch | None
) -> tuple[Spectrum, ...]:
    """Return the spectra of a layer, as exact as its rule needs them.

    With scratch storage, the leading singular vectors are computed as well, at little cost, and stored there; computing
    the factors then takes a single matrix product.
    """
    layer = candidate.layer
    rank = candidate.break_even_rank
    subspaces = decomposition.subspaces(layer, weight, rank) if scratch and rank else ()
    if scratch:
        scratch.put((candidate.decomposition, layer.name), subspaces)
    spectra = tuple(Spectrum.of(subspace) for subspace in subspaces)
    settled = bool(spectra) and rule.settled(replace(candidate, spectra=spectra))
    return spectra if settled else decomposition.spectra(layer, weight)


def read_weight(source: Source, layer: Layer, device: str) -> Tensor:
    """Return the weight of a layer on a device, in its stored dtype."""
    return source.read(layer.weight.name).to(device)


def memory_of(layer: Layer) -> int:
    """Return the size in bytes of a layer's weight in float32."""
    return 4 * layer.weight.numel


def check_device(device: str) -> None:
    """Raise a UsageError if torch cannot compute on a device."""
    try:
        torch.zeros(1, device=device).item()  # the device `meta` has no values
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device `{device}` cannot be used: {first_line(error, 120)}.") from error


def refuse(source: Source, found: Sequence[Layer | Keep]) -> NoReturn:
    """Raise an LrzipError with the most frequent reason why tensors are kept."""
    kept = [item for item in found if isinstance(item, Keep)]
    reasons = [item.reason for item in kept if len(item.tensor.shape) > 1] or [item.reason for item in kept]
    commonest = f"most are kept as {max(set(reasons), key=reasons.count)}" if reasons else "it has no tensors"
    raise LrzipError(f"`{source.path}` has no layer that can be factorized: {commonest}. See `lrzip analyze`.")


def candidate_of(
    layer: Layer, name: str, decomposition: Decomposition, spectra: tuple[Spectrum, ...] = ()
) -> Candidate:
    """Return a layer as a candidate for rank rules.

    Args:
        layer: The layer.
        name: Registered name of the decomposition.
        decomposition: The decomposition.
        spectra: Its spectra, if they are known.
    """
    parameters_of = _parameters(decomposition, layer)
    return Candidate(layer, decomposition.max_ranks(layer), parameters_of, spectra, decomposition=name)


def _parameters(decomposition: Decomposition, layer: Layer) -> Callable[[tuple[int, ...]], int]:
    return lambda ranks: parameters(decomposition.blueprint(layer, ranks))
